"""The life of a request: one outcome, the first one; replies in order; deadlines that only chunks can move."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest
from fakes import ManualClock, call, in_loop, turns
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from torchd_protos.frames import CHUNK_OVERHEAD, Reply
from torchd_server.deadlines import Deadlines
from torchd_server.errors import Cancelled, DeadlineExceeded, DeadlineInQueue, HandlerFailed, TorchdError
from torchd_server.request import Request, State

_numbers = itertools.count(1)


class RecordingOwner:
    """Holds requests and writes down what it is told."""

    def __init__(self) -> None:
        self.released: list[Request] = []
        self.credits: list[int] = []

    def release(self, request: Request) -> None:
        self.released.append(request)

    def credit(self, request: Request, size: int) -> None:
        self.credits.append(size)


class RequestLife(RuleBasedStateMachine):
    """Anything that can happen to a request, in any order, beside a model of what must come of it (P01, P02, P09)."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.queue, self.worker = RecordingOwner(), RecordingOwner()
        self.done: list[Request] = []
        self.sent: list[bytes] = []
        self.outcome: type[TorchdError] | str | None = None
        self.owner: RecordingOwner | None = None
        self.releases = 0

    @initialize(timeout_ms=st.sampled_from([0, 1, 700, 5000]), response_timeout=st.sampled_from([1.0, 3.0]))
    def arrives(self, timeout_ms: int, response_timeout: float) -> None:
        self.response_timeout = response_timeout
        self.client_deadline = self.clock.time() + timeout_ms / 1000 if timeout_ms else float("inf")
        self.deadline = min(self.client_deadline, self.clock.time() + response_timeout)
        self.deadlines = Deadlines(self.clock, least_seconds=0)
        self.request = Request(call(timeout_ms=timeout_ms), 7, response_timeout, self.clock, self.is_done)
        self.deadlines.watch(self.request)

    def is_done(self, request: Request) -> None:
        self.done.append(request)
        self.deadlines.forget(request)

    def ends(self, outcome: type[TorchdError] | str) -> None:
        if self.outcome is not None:
            return
        self.outcome = outcome
        self.releases += self.owner is not None
        self.owner = None

    @rule()
    def put(self) -> None:
        assume(self.outcome is None and self.owner is None)
        self.request.queued(self.queue)
        self.owner = self.queue

    @rule()
    def sent_to_a_worker(self) -> None:
        assume(self.outcome is None and self.owner is self.queue)
        self.request.sent(self.worker)
        self.owner = self.worker

    @rule()
    def put_back(self) -> None:
        assume(self.outcome is None and self.owner is self.worker)
        self.request.queued(self.queue)
        self.owner = self.queue

    @rule(body=st.binary(max_size=3))
    def chunk(self, body: bytes) -> None:
        assume(self.owner is self.worker or self.outcome is not None)
        self.request.reply(Reply(7, body=body, more=True))
        if self.outcome is None:
            self.sent.append(body)
            self.deadline = min(self.client_deadline, self.clock.time() + self.response_timeout)

    @rule(body=st.binary(max_size=3))
    def last_reply(self, body: bytes) -> None:
        assume(self.owner is self.worker or self.outcome is not None)
        self.request.reply(Reply(7, body=body))
        if self.outcome is None:
            self.sent.append(body)
        self.ends("ok")

    @rule()
    def fails(self) -> None:
        self.request.finish(HandlerFailed("ValueError: no"))
        self.ends(HandlerFailed)

    @rule()
    def client_goes(self) -> None:
        self.request.cancel()
        self.ends(Cancelled)

    @rule(seconds=st.sampled_from([0.0005, 0.3, 0.999, 1.0, 2.5]))
    def time_passes(self, seconds: float) -> None:
        running = self.owner is self.worker
        self.clock.advance(seconds)
        if self.clock.time() >= self.deadline:
            self.ends(DeadlineExceeded if running else DeadlineInQueue)

    @precondition(lambda self: self.outcome is not None)
    @rule(move=st.sampled_from([Request.queued, Request.sent]))
    def moves_after_its_end(self, move: Callable[[Request, RecordingOwner], None]) -> None:
        with pytest.raises(RuntimeError, match="is done"):
            move(self.request, self.queue)

    @invariant()
    def has_at_most_one_outcome(self) -> None:
        assert (self.request.state is State.DONE) == (self.outcome is not None)
        assert self.done == ([self.request] if self.outcome is not None else [])
        error = self.request.error
        assert (type(error) if error is not None else "ok") == (self.outcome or "ok")

    @invariant()
    def whoever_held_it_at_its_end_was_told_once(self) -> None:
        assert len(self.queue.released) + len(self.worker.released) == self.releases

    @invariant()
    def its_deadline_is_never_past_the_clients(self) -> None:
        assert self.request.deadline == self.deadline <= self.client_deadline

    def teardown(self) -> None:
        self.request.cancel()
        assert len(self.deadlines) == 0, "a finished request is held"
        answer = asyncio.run(_collect(self.request))
        assert [bytes(reply.body) for reply in answer] == self.sent


async def _collect(request: Request) -> list[Reply]:
    taken = []
    try:
        async for reply in request.replies():
            taken.append(reply)
    except TorchdError:
        assert request.error is not None
    return taken


TestRequestLife = RequestLife.TestCase


def made(clock: ManualClock, *, timeout_ms: int = 0, response_timeout: float = 10.0) -> Request:
    deadlines = Deadlines(clock)
    request = Request(call(timeout_ms=timeout_ms), next(_numbers), response_timeout, clock, deadlines.forget)
    deadlines.watch(request)
    return request


@pytest.mark.parametrize(("timeout_ms", "seconds"), [(0, 10.0), (2000, 2.0), (60_000, 10.0), (1, 0.001)])
def test_the_deadline_is_the_clients_or_the_models_whichever_is_first(timeout_ms: int, seconds: float) -> None:
    """K05, K07."""
    clock = ManualClock()
    request = made(clock, timeout_ms=timeout_ms)
    clock.advance(seconds * 0.99)
    assert request.state is State.RECEIVED
    clock.advance(seconds * 0.02)
    assert isinstance(request.error, DeadlineInQueue)


def test_a_deadline_in_the_queue_is_another_error_than_one_in_flight() -> None:
    """K04, K06: only the first may be retried without asking."""
    clock = ManualClock()
    waiting, running, back = made(clock), made(clock), made(clock)
    waiting.queued(RecordingOwner())
    for request in (running, back):
        request.sent(RecordingOwner())
    back.queued(RecordingOwner())
    clock.advance(10)
    assert [type(request.error) for request in (waiting, running, back)] == [
        DeadlineInQueue,
        DeadlineExceeded,
        DeadlineInQueue,
    ]


def test_chunks_keep_a_stream_alive_but_not_past_the_clients_deadline() -> None:
    clock = ManualClock()
    request = made(clock, timeout_ms=25_000)
    request.sent(RecordingOwner())
    for _ in range(3):
        clock.advance(8)
        request.reply(Reply(1, body=b"x", more=True))
    assert request.state is State.SENT
    clock.advance(0.9)
    assert request.state is State.SENT
    clock.advance(0.2)
    assert isinstance(request.error, DeadlineExceeded)


def test_a_stream_that_stalls_ends_at_the_models_timeout_after_its_last_chunk() -> None:
    clock = ManualClock()
    request = made(clock)
    request.sent(RecordingOwner())
    clock.advance(5)
    request.reply(Reply(1, body=b"x", more=True))
    clock.advance(9.9)
    assert request.state is State.SENT
    clock.advance(0.2)
    assert isinstance(request.error, DeadlineExceeded)


@in_loop
async def test_an_answer_waits_for_its_last_piece() -> None:
    request = made(ManualClock())
    request.sent(RecordingOwner())
    waiting = asyncio.ensure_future(request.answer())
    request.reply(Reply(1, body=b"a", more=True))
    await turns()
    assert not waiting.done()
    request.reply(Reply(1, body=b"b"))
    assert [reply.body for reply in await waiting] == [b"a", b"b"]


@in_loop
async def test_each_chunk_is_credited_when_the_client_has_taken_it() -> None:
    """P10: what a client has not read is not asked for again."""
    worker = RecordingOwner()
    request = made(ManualClock())
    request.sent(worker)
    replies = request.replies()
    for body in (b"12", b"345"):
        request.reply(Reply(1, body=body, more=True))
    assert worker.credits == []
    await anext(replies)
    assert worker.credits == [2 + CHUNK_OVERHEAD]
    await anext(replies)
    assert worker.credits == [2 + CHUNK_OVERHEAD, 3 + CHUNK_OVERHEAD]
    await replies.aclose()


@in_loop
async def test_a_client_that_leaves_takes_its_request_back() -> None:
    """K02, P09: the worker is told; the request is cancelled, not failed."""
    worker = RecordingOwner()
    whole, stream = made(ManualClock()), made(ManualClock())
    for request in (whole, stream):
        request.sent(worker)
    waiting = asyncio.ensure_future(whole.answer())
    await turns()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    stream.reply(Reply(1, body=b"x", more=True))
    replies = stream.replies()
    await anext(replies)
    await replies.aclose()
    assert worker.released == [whole, stream]
    assert isinstance(whole.error, Cancelled)
    assert isinstance(stream.error, Cancelled)


@in_loop
async def test_the_chunks_before_an_error_arrive_before_it() -> None:
    request = made(ManualClock())
    request.sent(RecordingOwner())
    request.reply(Reply(1, body=b"a", more=True))
    request.finish(HandlerFailed("ValueError: no"))
    replies = request.replies()
    assert (await anext(replies)).body == b"a"
    with pytest.raises(HandlerFailed, match="no"):
        await anext(replies)


@pytest.mark.parametrize("is_stream", [False, True])
def test_who_does_not_await_is_told_once_of_the_first_piece(is_stream: bool) -> None:
    request = made(ManualClock())
    request.sent(RecordingOwner())
    told: list[Reply | None] = []
    request.when_answered(lambda answered: told.append(answered.take()))
    first = Reply(1, body=b"a", more=is_stream)
    request.reply(first)
    request.reply(Reply(1, body=b"b"))
    assert told == [first]


def test_who_asks_late_is_told_at_once() -> None:
    request = made(ManualClock())
    request.cancel()
    told: list[Request] = []
    request.when_answered(told.append)
    assert told == [request]


def test_a_listener_that_fails_costs_neither_owner_nor_list_their_news() -> None:
    owner, done = RecordingOwner(), []
    request = Request(call(), 1, 10.0, ManualClock(), done.append)
    request.sent(owner)
    request.when_answered(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        request.reply(Reply(1, body=b"a"))
    assert (owner.released, done) == ([request], [request])
