"""The order of waiting requests, compared with a plain list."""

from __future__ import annotations

from fakes import ManualClock, call
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from torchd_server.batching.queues import Fifo
from torchd_server.request import Request


class FifoBesideAList(RuleBasedStateMachine):
    """Every operation, in any order, on the queue and on a list."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.queue = Fifo()
        self.list: list[Request] = []
        self.number = 0
        self.taken: list[Request] = []

    @rule(target=requests)
    def put(self) -> Request:
        self.number += 1
        request = Request(call(), self.number, 1.0, ManualClock(), lambda _: None)
        self.queue.put(request)
        self.list.append(request)
        return request

    @rule(most=st.integers(0, 4))
    def take(self, most: int) -> None:
        taken = self.queue.take(most)
        assert taken == self.list[:most]
        del self.list[:most]
        self.taken += taken

    @rule(most=st.integers(0, 4))
    def put_back(self, most: int) -> None:
        back, self.taken = self.taken[:most], self.taken[most:]
        self.queue.put_back(back)
        self.list = sorted(self.list + back, key=lambda request: request.number)

    @rule(request=requests)
    def discard(self, request: Request) -> None:
        self.queue.discard(request)
        if request in self.list:
            self.list.remove(request)

    @invariant()
    def both_hold_the_same(self) -> None:
        assert len(self.queue) == len(self.list)
        if self.list:
            assert self.queue.oldest() is self.list[0]


TestFifo = FifoBesideAList.TestCase
