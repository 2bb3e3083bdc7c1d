"""One timer for all requests: whoever is due is expired in time, and nobody else."""

from __future__ import annotations

import pytest
from fakes import ManualClock, call

from torchd_protos.frames import Reply
from torchd_server.deadlines import LEAST_SECONDS, Deadlines
from torchd_server.errors import DeadlineExceeded, DeadlineInQueue
from torchd_server.request import Request, State


class Bench:
    """Requests on a clock moved by hand."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.deadlines = Deadlines(self.clock)
        self.number = 0

    def request(self, timeout: float) -> Request:
        self.number += 1
        request = Request(call(), self.number, timeout, self.clock, self.deadlines.forget)
        self.deadlines.watch(request)
        return request


def test_requests_expire_in_the_order_of_their_deadlines_whatever_the_order_they_came_in() -> None:
    bench = Bench()
    late, soon, middle = bench.request(3.0), bench.request(1.0), bench.request(2.0)
    for expected in ([soon], [soon, middle], [soon, middle, late]):
        bench.clock.advance(1.0)
        assert [request for request in (soon, middle, late) if request.state is State.DONE] == expected
    assert len(bench.deadlines) == 0
    assert bench.clock.next_call is None


def test_many_deadlines_at_once_are_looked_at_together_and_none_is_late() -> None:
    bench = Bench()
    requests = [bench.request(1.0 + number / 10_000) for number in range(100)]
    for request in requests:
        bench.clock.advance_to(request.deadline + LEAST_SECONDS)
        assert request.state is State.DONE


def test_answered_requests_leave_at_most_one_timer() -> None:
    bench = Bench()
    for _ in range(10):
        bench.request(1.0).finish()
    bench.clock.advance(1.0)
    assert bench.clock.next_call is None


def test_one_request_whose_end_goes_wrong_leaves_the_others_watched() -> None:
    bench = Bench()
    wrong, other = bench.request(1.0), bench.request(2.0)

    def fails(request: Request) -> None:
        raise RuntimeError("whoever is told of its end")

    wrong.when_answered(fails)
    with pytest.raises(RuntimeError):
        bench.clock.advance(1.0)
    bench.clock.advance(1.0)
    assert [wrong.state, other.state] == [State.DONE, State.DONE]


def test_a_timer_is_taken_back_at_the_end() -> None:
    bench = Bench()
    bench.request(1.0)
    bench.deadlines.close()
    assert bench.clock.next_call is None


def test_an_answer_that_comes_after_the_deadline_is_none() -> None:
    """However late the watch looks: handlers stop at the deadline too, and answer with what they have by then."""
    clock = ManualClock()
    request = Request(call(), 1, 1.0, clock, lambda _: None)
    clock.advance(1.0)
    request.reply(Reply(1, body=b"half"))
    assert isinstance(request.error, DeadlineExceeded | DeadlineInQueue)
