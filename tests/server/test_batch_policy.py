"""Who runs next, with whom, and when: the batch policy with a clock moved by hand and workers that only write down."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from fakes import ManualClock, ManualTimer, call
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from torchd_server.batching.policy import AHEAD_BATCHES, AHEAD_SECONDS, AHEAD_SHARE, BatchPolicy
from torchd_server.batching.queues import Fifo
from torchd_server.batching.turns import EachStep, FreeRunning
from torchd_server.batching.waits import COMPANY_SECONDS, REMEMBERED_BATCHES, WAITS, NoWait
from torchd_server.request import Request, State

DELAY = 0.1
SIZE = 4


class Taker:
    """A worker that takes batches and finishes them when the test says so."""

    def __init__(self, policy: BatchPolicy) -> None:
        self.policy = policy
        self.batches: list[list[Request]] = []
        self.waited: list[float] = []
        self.running: list[Request] = []
        self.is_idle = False
        # A test that wants batches sent ahead says so: it answers them in their order then.
        self.in_hand = 0

    @property
    def room(self) -> int:
        return self.policy.turn.room(0) if self.is_idle else 0

    def wants_more(self) -> None:
        self.is_idle = True
        self.policy.has_room(self)

    def run(self, batch: list[Request], waited_seconds: float) -> None:
        self.is_idle = False
        for request in batch:
            request.sent(self)
        self.batches.append(batch)
        self.waited.append(waited_seconds)
        self.running = batch

    def finish(self, seconds: float | None) -> None:
        running, self.running = self.running, []
        for request in running:
            request.finish()
        self.policy.finished(self, running, seconds)

    def release(self, request: Request) -> None:
        """A running request was cancelled: its answer goes nowhere."""

    def credit(self, request: Request, size: int) -> None:
        """Nothing is streamed here."""


class Bench:
    """A policy, its clock, and requests numbered from 1."""

    def __init__(self, wait: str, size: int = SIZE, limit: int = 100) -> None:
        self.clock = ManualClock()
        self.policy = BatchPolicy(Fifo(), size, limit, WAITS[wait](DELAY), self.clock)
        self.requests: list[Request] = []

    def put(self) -> Request:
        request = Request(call(), len(self.requests) + 1, 1000.0, self.clock, lambda _: None)
        self.requests.append(request)
        self.policy.put(request)
        return request

    def taker(self) -> Taker:
        taker = Taker(self.policy)
        taker.wants_more()
        return taker


@pytest.mark.parametrize("wait", WAITS)
def test_a_full_batch_goes_at_once(wait: str) -> None:
    bench = Bench(wait)
    requests = [bench.put() for _ in range(SIZE + 1)]
    taker = bench.taker()
    assert taker.batches == [requests[:SIZE]]
    assert taker.waited == [0.0]


class Quick(Taker):
    """A worker whose batches take no time to speak of, so that others may stand behind the one it runs."""

    def __init__(self, policy: BatchPolicy) -> None:
        super().__init__(policy)
        self.queue: list[list[Request]] = []

    @property
    def in_hand(self) -> int:  # type: ignore[override]
        return len(self.queue)

    @in_hand.setter
    def in_hand(self, value: int) -> None: ...

    def run(self, batch: list[Request], waited_seconds: float) -> None:
        super().run(batch, waited_seconds)
        self.queue.append(batch)

    def ends(self, seconds: float) -> None:
        """Its first batch is through."""
        self.running = self.queue.pop(0)
        self.finish(seconds)
        self.is_idle = not self.queue
        self.policy.has_room(self)


def quick(bench: Bench, seconds: float) -> Quick:
    """A worker that is known to take so long."""
    taker = Quick(bench.policy)
    taker.wants_more()
    for _ in range(SIZE):
        bench.put()
    taker.ends(seconds)
    return taker


def test_a_quick_worker_is_sent_full_batches_ahead() -> None:
    bench = Bench("full")
    seconds = 0.9 * AHEAD_SECONDS
    taker = quick(bench, seconds)
    requests = [bench.put() for _ in range(3 * SIZE)]
    assert taker.queue == [requests[:SIZE], requests[SIZE : 2 * SIZE]]
    assert bench.policy.depth == SIZE
    taker.ends(seconds)
    assert taker.queue == [requests[SIZE : 2 * SIZE], requests[2 * SIZE :]]


@pytest.mark.parametrize(
    ("seconds", "ahead"),
    [(0.45 * AHEAD_SECONDS, 2), (0.19 * AHEAD_SECONDS, 5), (1e-6, AHEAD_BATCHES), (0.0, AHEAD_BATCHES)],
)
def test_what_stands_behind_a_batch_takes_no_longer_than_the_bound(seconds: float, ahead: int) -> None:
    bench = Bench("full", limit=10_000)
    taker = quick(bench, seconds)
    for _ in range((AHEAD_BATCHES + 4) * SIZE):
        bench.put()
    assert len(taker.queue) == 1 + ahead


@pytest.mark.parametrize(("limit", "ahead"), [(3 * SIZE, 0), (AHEAD_SHARE * SIZE, 1), (2 * AHEAD_SHARE * SIZE, 2)])
def test_what_is_ahead_is_a_part_of_what_may_wait(limit: int, ahead: int) -> None:
    """A queue of two is a queue of two: what went ahead would let in more."""
    bench = Bench("full", limit=limit)
    taker = quick(bench, 1e-6)
    for _ in range(3 * SIZE):
        bench.put()
    assert len(taker.queue) == 1 + ahead


def test_what_waiting_could_still_fill_is_not_sent_ahead() -> None:
    bench = Bench("full")
    taker = quick(bench, 0.001)
    requests = [bench.put() for _ in range(2 * SIZE - 1)]
    assert taker.queue == [requests[:SIZE]]


def test_a_slow_worker_is_sent_nothing_ahead() -> None:
    """A second worker may have room before it."""
    bench = Bench("full")
    taker = quick(bench, 2 * AHEAD_SECONDS)
    requests = [bench.put() for _ in range(3 * SIZE)]
    assert taker.queue == [requests[:SIZE]]


def test_an_idle_worker_comes_before_one_that_is_sent_ahead() -> None:
    bench = Bench("full")
    first, second = quick(bench, 0.001), Quick(bench.policy)
    second.wants_more()
    requests = [bench.put() for _ in range(2 * SIZE)]
    assert [first.queue, second.queue] == [[requests[:SIZE]], [requests[SIZE:]]]


def after_a_burst(bench: Bench, *takers: Quick) -> None:
    """Many clients have been served quickly."""
    for taker in takers:
        taker.wants_more()
    for _ in range(AHEAD_BATCHES):
        bench.put()
    serve(bench, *takers)


def serve(bench: Bench, *takers: Quick) -> None:
    """Until everybody has his answer."""
    while bench.policy.depth or any(taker.queue for taker in takers):
        if not any(taker.queue for taker in takers):
            bench.clock.advance(COMPANY_SECONDS)
        for taker in takers:
            while taker.queue:
                taker.ends(0.0001)


def test_those_who_waited_in_company_go_together_to_all_idle_workers() -> None:
    bench = Bench("adaptive", size=1)
    first, second = Quick(bench.policy), Quick(bench.policy)
    after_a_burst(bench, first, second)
    for _ in range(3):
        bench.put()
    assert bench.policy.depth == 3
    bench.clock.advance(COMPANY_SECONDS)
    assert bench.policy.depth == 0
    assert sorted([len(first.queue), len(second.queue)]) == [1, 2]


def test_quick_batches_of_one_forget_how_many_clients_a_burst_had() -> None:
    bench = Bench("adaptive", size=1)
    taker = Quick(bench.policy)
    after_a_burst(bench, taker)
    waited = []
    for _ in range(3 * REMEMBERED_BATCHES):
        for _ in range(2):
            bench.put()
        waited.append(not taker.queue)
        serve(bench, taker)
    assert waited[0]
    assert 1 <= sum(waited[REMEMBERED_BATCHES:]) <= 3  # one in eight looks whether others come


def test_full_waits_the_whole_delay_from_when_the_worker_took_the_first_request() -> None:
    bench = Bench("full")
    first = bench.put()
    bench.clock.advance(5)  # nobody was there to take it: this does not count
    taker = bench.taker()
    bench.clock.advance(DELAY * 0.99)
    second = bench.put()
    assert taker.batches == []
    bench.clock.advance(DELAY * 0.02)
    assert taker.batches == [[first, second]]
    assert taker.waited == [pytest.approx(DELAY)]


def test_adaptive_sends_a_lone_client_at_once_every_time() -> None:
    """#2005: the delay is no price."""
    bench = Bench("adaptive")
    taker = bench.taker()
    for _ in range(5):
        bench.put()
        assert taker.running, "a lone request waited"
        bench.clock.advance(0.02)
        taker.finish(0.02)
        taker.wants_more()
        bench.clock.advance(0.3)
    assert taker.waited == [0.0] * 5


def test_adaptive_collects_clients_that_come_back_together() -> None:
    bench = Bench("adaptive", size=8)
    taker = bench.taker()
    for _ in range(8):
        bench.put()
    sizes = []
    for _ in range(20):
        answered = len(taker.running)
        bench.clock.advance(0.02)
        taker.finish(0.02)
        taker.wants_more()
        for _ in range(answered):
            bench.clock.advance(0.0002)
            bench.put()
        sizes.append(len(taker.running))
    assert sizes == [8] * 20, "a batch went before everybody had come back"


def test_adaptive_stops_waiting_for_clients_that_have_left() -> None:
    bench = Bench("adaptive", size=8)
    taker = bench.taker()
    for _ in range(6):
        bench.put()
    for there in (5, 1):
        bench.clock.advance(0.04)
        taker.finish(0.04)
        taker.wants_more()
        if there == 1:
            bench.put()  # the only one who stays
        assert taker.running == []
        bench.clock.advance(0.011)  # a quarter of what a batch costs
        assert len(taker.running) == there


@pytest.mark.parametrize("wait", WAITS)
def test_requests_handed_back_are_first_again_and_over_the_limit_if_need_be(wait: str) -> None:
    """P04: a batch that has not begun moves freely."""
    bench = Bench(wait, size=2, limit=2)
    dying = bench.taker()
    first, second = bench.put(), bench.put()
    third, fourth = bench.put(), bench.put()
    assert bench.policy.room == 0
    bench.policy.finished(dying, dying.running, None)
    bench.policy.put_back(dying.running)
    assert (bench.policy.depth, bench.policy.room) == (4, 0)
    assert {first.state, second.state} == {State.QUEUED}
    taker = bench.taker()
    taker.finish(0.01)
    taker.wants_more()
    assert taker.batches == [[first, second], [third, fourth]]


@pytest.mark.parametrize("wait", WAITS)
def test_what_a_leaving_worker_was_collecting_goes_to_the_next(wait: str) -> None:
    """W04: nothing was sent, so nothing is lost."""
    bench = Bench(wait)
    for _ in range(SIZE):
        bench.put()
    busy = bench.taker()
    bench.clock.advance(0.02)
    busy.finish(0.02)
    leaving = bench.taker()
    request = bench.put()
    assert leaving.batches == [], "the other three may come back"
    bench.policy.leave(leaving)
    bench.clock.advance(10 * DELAY)
    assert leaving.batches == []
    busy.wants_more()
    bench.clock.advance(DELAY)
    assert busy.batches[-1] == [request]


def test_a_cancelled_request_is_never_sent_and_does_not_count_for_the_batch() -> None:
    """K01, P09."""
    bench = Bench("full")
    taker = bench.taker()
    kept, gone = bench.put(), bench.put()
    gone.cancel()
    bench.put(), bench.put()
    assert taker.batches == []
    last = bench.put()
    assert taker.batches[0][0] is kept
    assert taker.batches[0][-1] is last
    assert gone not in taker.batches[0]


def test_taking_everything_out_leaves_nothing_to_send() -> None:
    bench = Bench("full")
    taker = bench.taker()
    requests = [bench.put(), bench.put()]
    assert bench.policy.waiting() == requests
    bench.clock.advance(10 * DELAY)
    assert taker.batches == []
    assert bench.policy.depth == 0


class AnyTraffic(RuleBasedStateMachine):
    """Arrivals, cancellations, ends and deaths of batches in any order, under either rule.

    A request is run at most once, in its turn, in a batch of bounded size, and none waits past the delay while a worker
    is idle.
    """

    wait = "full"

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(self.wait)
        self.takers = [Taker(self.bench.policy) for _ in range(3)]
        self.waiting: list[Request] = []
        self.idle_since: dict[Request, float] = {}

    @property
    def idle(self) -> list[Taker]:
        return [taker for taker in self.takers if taker.is_idle]

    @rule()
    def arrives(self) -> None:
        self.waiting.append(self.bench.put())

    @rule(number=st.integers(0, 30))
    def client_goes(self, number: int) -> None:
        if number < len(self.bench.requests):
            self.bench.requests[number].cancel()

    @rule(number=st.integers(0, 2))
    def has_room(self, number: int) -> None:
        taker = self.takers[number]
        if not taker.is_idle and not taker.running:
            taker.wants_more()

    @rule(number=st.integers(0, 2), seconds=st.sampled_from([0.0, 0.001, 0.05, 2.0]))
    def finishes(self, number: int, seconds: float) -> None:
        if self.takers[number].running:
            self.takers[number].finish(seconds)

    @rule(number=st.integers(0, 2))
    def dies_before_it_began(self, number: int) -> None:
        taker = self.takers[number]
        running, taker.running = taker.running, []
        if running:
            back = [request for request in running if request.state is not State.DONE]
            self.bench.policy.finished(taker, running, None)
            self.waiting[:0] = back
            taker.batches.pop()
            self.bench.policy.put_back(back)

    @rule(number=st.integers(0, 2))
    def leaves(self, number: int) -> None:
        self.bench.policy.leave(self.takers[number])
        self.takers[number].is_idle = False

    @rule(seconds=st.sampled_from([0.0002, 0.01, 0.03, DELAY]))
    def time_passes(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)

    def finish_all(self) -> None:
        for taker in self.takers:
            if taker.running:
                taker.finish(0.01)

    @precondition(lambda self: self.bench.requests)
    @invariant()
    def batches_are_bounded_and_in_order(self) -> None:
        for taker in self.takers:
            for batch in taker.batches:
                assert 1 <= len(batch) <= SIZE
                assert all(one.number < next_one.number for one, next_one in pairwise(batch))
        self.waiting = [request for request in self.waiting if request.state is State.QUEUED]
        queued = [request for request in self.bench.requests if request.state is State.QUEUED]
        assert sorted(queued, key=lambda request: request.number) == sorted(
            self.waiting, key=lambda request: request.number
        )
        assert self.bench.policy.depth == len(queued)

    @invariant()
    def a_request_is_in_one_batch(self) -> None:
        taken = [request for taker in self.takers for batch in taker.batches for request in batch]
        assert len(taken) == len(set(taken))

    @invariant()
    def nobody_waits_past_the_delay_while_a_worker_is_idle(self) -> None:
        now = self.bench.clock.time()
        queued = [request for request in self.bench.requests if request.state is State.QUEUED]
        if not self.idle or not queued:
            self.idle_since = {}
            return
        self.idle_since = {request: self.idle_since.get(request, now) for request in queued}
        assert all(now < since + DELAY + 1e-9 for since in self.idle_since.values())
        assert len(queued) < SIZE, "a full batch waits beside an idle worker"

    def teardown(self) -> None:
        self.finish_all()
        while self.bench.policy.depth:
            if not self.idle:
                self.takers[0].wants_more()
            self.bench.clock.advance(DELAY)
            self.finish_all()
        assert all(request.state is State.DONE for request in self.bench.requests), "a request was lost"


class AnyTrafficAdaptive(AnyTraffic):
    """The same under the adaptive rule."""

    wait = "adaptive"


class Stepper:
    """A worker whose requests join and leave one by one."""

    def __init__(self, policy: BatchPolicy, everybody: list[Request]) -> None:
        self.policy = policy
        self.everybody = everybody
        self.taken: list[Request] = []
        self.running: list[Request] = []

    in_hand = 0

    @property
    def room(self) -> int:
        return self.policy.turn.room(len(self.running))

    def run(self, batch: list[Request], waited_seconds: float) -> None:
        first = [request for request in self.everybody if request.state is State.QUEUED][: len(batch)]
        assert batch == first, "somebody was overtaken"
        for request in batch:
            request.sent(self)
        assert 1 <= len(batch) <= self.room, "more than it has room for"
        self.taken += batch
        self.running += batch

    def release(self, request: Request) -> None:
        """A running request was cancelled; it keeps its place until the worker has left it."""

    def credit(self, request: Request, size: int) -> None:
        """Nothing is streamed here."""


class AnySteps(RuleBasedStateMachine):
    """Requests that join one by one: no place stays empty while somebody waits, none is taken twice, none is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.policy = BatchPolicy(Fifo(), SIZE, 100, NoWait(), self.clock, EachStep(SIZE))
        self.requests: list[Request] = []
        self.workers: list[Stepper] = []
        self.gone: list[Stepper] = []

    @rule()
    def arrives(self) -> None:
        request = Request(call(), len(self.requests) + 1, 1000.0, self.clock, lambda _: None)
        self.requests.append(request)
        self.policy.put(request)

    @rule(number=st.integers(0, 30))
    def client_goes(self, number: int) -> None:
        if number < len(self.requests):
            self.requests[number].cancel()

    @rule()
    def a_worker_comes(self) -> None:
        if len(self.workers) < 3:
            self.workers.append(Stepper(self.policy, self.requests))
            self.policy.has_room(self.workers[-1])

    @rule(number=st.integers(0, 2), which=st.integers(0, SIZE - 1))
    def ends(self, number: int, which: int) -> None:
        if number < len(self.workers) and self.workers[number].running:
            self.end(self.workers[number], which)

    def end(self, worker: Stepper, which: int = 0) -> None:
        request = worker.running.pop(which % len(worker.running))
        request.finish()
        self.policy.finished(worker, [request], 0.01)
        self.policy.has_room(worker)

    @rule(size=st.integers(1, 2 * SIZE))
    def is_resized(self, size: int) -> None:
        """PUT batch_size; the model version then asks its workers whether they have room now."""
        self.policy.resize(EachStep(size), size, 100, NoWait)
        for worker in self.workers:
            self.policy.has_room(worker)

    @rule(number=st.integers(0, 2), begun=st.integers(0, SIZE))
    def dies(self, number: int, begun: int) -> None:
        """What joined last may not have begun."""
        if number >= len(self.workers):
            return
        worker = self.workers.pop(number)
        self.gone.append(worker)
        running, worker.running = worker.running, []
        back = [request for request in running[begun:] if request.state is not State.DONE]
        worker.taken = [request for request in worker.taken if request not in back]
        self.policy.finished(worker, running, None)
        self.policy.leave(worker, back)
        for request in running:
            if request not in back:
                request.finish()

    @invariant()
    def no_place_is_empty_while_somebody_waits(self) -> None:
        queued = sum(request.state is State.QUEUED for request in self.requests)
        assert self.policy.depth == queued
        assert not queued or all(worker.room == 0 for worker in self.workers)
        assert self.policy.tickets == (0 if queued else sum(worker.room for worker in self.workers))
        assert self.policy.running == sum(len(worker.running) for worker in self.workers)

    @invariant()
    def a_request_is_taken_once(self) -> None:
        taken = [request for worker in [*self.workers, *self.gone] for request in worker.taken]
        assert len(taken) == len(set(taken))

    def teardown(self) -> None:
        self.a_worker_comes()
        while any(worker.running for worker in self.workers):
            for worker in self.workers:
                if worker.running:
                    self.end(worker)
        assert all(request.state is State.DONE for request in self.requests), "a request was lost"


TestAnySteps = AnySteps.TestCase
TestAnyTrafficFull = AnyTraffic.TestCase
TestAnyTrafficAdaptive = AnyTrafficAdaptive.TestCase


@pytest.mark.parametrize("turn", [EachStep, FreeRunning])
def test_a_worker_that_runs_more_than_it_should_since_a_resize_takes_no_more(
    turn: type[EachStep] | type[FreeRunning],
) -> None:
    """PUT batch_size or job_queue_size under load: less than nothing is no room (P22)."""
    clock = ManualClock()
    policy = BatchPolicy(Fifo(), SIZE, 100, NoWait(), clock, turn(SIZE))
    requests = [Request(call(), number, 1000.0, clock, lambda _: None) for number in range(1, SIZE + 1)]
    worker = Stepper(policy, requests)
    policy.has_room(worker)
    for request in requests[:-1]:
        policy.put(request)
    policy.resize(turn(1), 1, 100, NoWait)
    policy.put(requests[-1])
    assert worker.running == requests[:-1]
    assert policy.tickets == 0
    for request in requests[:-1]:
        worker.running.remove(request)
        policy.finished(worker, [request], 0.01)
        policy.has_room(worker)
    assert worker.running == requests[-1:]


class EarlyClock(ManualClock):
    """A clock whose timers ring up to a millisecond early, as uvloop's do."""

    def call_at(self, when: float, callback: Callable[[], object]) -> ManualTimer:
        return super().call_at(max(self.time() + 1e-5, when - 0.0009), callback)


def test_a_timer_that_rings_early_is_set_again() -> None:
    clock = EarlyClock()
    policy = BatchPolicy(Fifo(), SIZE, 10, WAITS["full"](DELAY), clock)
    taker = Taker(policy)
    taker.wants_more()
    policy.put(Request(call(), 1, 1000.0, clock, lambda _: None))
    start = clock.time()
    while not taker.batches:
        assert clock.next_call is not None, "nothing will send it"
        clock.advance_to(clock.next_call)
    assert DELAY <= clock.time() - start < DELAY + 0.001
