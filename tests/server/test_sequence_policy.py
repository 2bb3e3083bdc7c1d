"""Sequences in lanes, with a clock moved by hand and workers that only write down: alone, and under any traffic."""

from __future__ import annotations

import contextlib

import pytest
from fakes import ManualClock, call
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from torchd_protos.frames import Header
from torchd_server import errors
from torchd_server.batching.modes import IDLE_MS, policy_for
from torchd_server.request import Request, State
from torchd_server.settings import ModelSettings, SequenceHeaders

DELAY = 0.1
SIZE = 3
WAITING = 3
SEQUENCES = 4
IDLE = 10.0
AGE = 100.0
NAMES = SequenceHeaders("seq", "start", "end")


class Taker:
    """A worker that does what the test says, under either turn."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.running: list[Request] = []
        self.batches: list[list[Request]] = []
        self.begun: set[Request] = set()

    in_hand = 0

    @property
    def room(self) -> int:
        return self.bench.policy.turn.room(len(self.running))

    def run(self, batch: list[Request], waited_seconds: float) -> None:
        for request in batch:
            request.sent(self)
            self.bench.home[request] = self
        self.batches.append(batch)
        self.running += batch

    def begin(self, request: Request) -> None:
        """Its first chunk."""
        self.begun.add(request)
        self.bench.policy.began(request)

    def finish(self, *requests: Request) -> None:
        """Their last answers; all that run if none is named."""
        ended = list(requests or self.running)
        for request in ended:
            self.running.remove(request)
            request.finish()
        self.bench.policy.finished(self, ended, 0.01)
        self.bench.policy.has_room(self)

    def die(self, *, started: bool) -> None:
        """As a worker dies: what had not begun is handed back, the rest has its error."""
        running, self.running = self.running, []
        waiting = [request for request in running if request.state is not State.DONE]
        back = [request for request in waiting if not started and request not in self.begun]
        self.bench.policy.finished(self, running, None)
        self.bench.policy.leave(self, back)
        for request in waiting:
            if request not in back:
                request.finish(errors.WorkerDied("killed"))

    def release(self, request: Request) -> None:
        """A running request was cancelled: its answer goes nowhere."""

    def credit(self, request: Request, size: int) -> None:
        """Nothing is streamed here."""


class Bench:
    """A policy, its clock, its requests numbered from 1, and who ran them."""

    def __init__(self, *, steps: bool = False, **more: object) -> None:
        self.clock = ManualClock()
        settings = {
            "sequence_batching": True,
            "continuous_batching": steps,
            "batch_size": SIZE,
            "batch_wait": "full",
            "max_batch_delay_ms": int(DELAY * 1000),
            "max_num_sequence": SEQUENCES,
            "max_sequence_job_queue_size": WAITING,
            "sequence_max_idle_ms": int(IDLE * 1000),
            "sequence_timeout_ms": int(AGE * 1000),
        }
        self.policy = policy_for(ModelSettings(**{**settings, **more}), self.clock, NAMES, ("m", "1.0"))  # type: ignore[arg-type]
        self.requests: list[Request] = []
        self.home: dict[Request, Taker] = {}

    def put(self, sequence: str = "", *, start: bool = False, end: bool = False) -> Request:
        headers = [Header("SEQ", sequence)] if sequence else []
        headers += [Header("start", "true")] if start else []
        headers += [Header("end", "True")] if end else []
        admitted = self.policy.admit(call(headers=headers))
        request = Request(admitted, len(self.requests) + 1, 1e6, self.clock, lambda _: None)
        self.requests.append(request)
        self.policy.put(request)
        return request

    def taker(self) -> Taker:
        taker = Taker(self)
        self.policy.has_room(taker)
        return taker


def sequence_of(request: Request) -> str:
    return next(header.value for header in request.call.headers if header.name.lower() == "seq")


def opens(request: Request) -> bool:
    return any(header.name == "start" for header in request.call.headers)


def test_one_request_of_each_sequence_goes_into_a_batch_in_their_order() -> None:
    bench = Bench()
    first, other, second = bench.put("a"), bench.put("b"), bench.put("a")
    taker = bench.taker()
    bench.clock.advance(DELAY)
    assert taker.batches == [[first, other]]
    taker.finish()
    bench.clock.advance(DELAY)
    assert taker.batches[1:] == [[second]]


def test_a_sequence_stays_with_its_worker_though_another_is_idle() -> None:
    bench = Bench(batch_size=1)
    home, other = bench.taker(), bench.taker()
    for _ in range(3):
        bench.put("a")
        (home if home.running else other).finish()
    assert sorted([len(home.batches), len(other.batches)]) == [0, 3]


def test_sequences_spread_over_the_workers() -> None:
    bench = Bench(batch_size=1)
    takers = [bench.taker(), bench.taker()]
    for name in "abcd":
        bench.put(name)
    for _ in range(2):
        for taker in takers:
            taker.finish()
    assert [len(taker.batches) for taker in takers] == [2, 2]


def test_nobody_overtakes_a_sequence_that_waits() -> None:
    """Fairness: who was served stands behind the others."""
    bench = Bench(batch_size=1)
    busy = [bench.put("a") for _ in range(3)]
    taker = bench.taker()
    quiet = bench.put("b")
    for _ in range(3):
        taker.finish()
    assert [batch[0] for batch in taker.batches] == [busy[0], quiet, busy[1], busy[2]]


def test_the_request_that_opens_a_sequence_carries_the_start_header() -> None:
    bench = Bench()
    first, second, nameless = bench.put("a"), bench.put("a"), bench.put()
    assert opens(first)
    assert not opens(second)
    assert opens(nameless)
    assert sequence_of(nameless).startswith("ts-seq-")


def test_limits_are_refused_by_class() -> None:
    bench = Bench()
    for _ in range(WAITING):
        bench.put("a")
    with pytest.raises(errors.SequenceFull, match="maxSequenceJobQueueSize"):
        bench.put("a")
    for name in "bcd":
        bench.put(name)
    with pytest.raises(errors.TooManySequences, match="maxNumSequence"):
        bench.put("e")


def test_an_end_header_closes_the_sequence_once_it_is_answered() -> None:
    bench = Bench(batch_size=1)
    taker = bench.taker()
    bench.put("a")
    bench.put("a", end=True)
    with pytest.raises(errors.SequenceClosed):
        bench.put("a")
    taker.finish()
    taker.finish()
    assert opens(bench.put("a")), "the name is free again"


def test_a_handler_ends_sequences_by_the_header_of_an_answer() -> None:
    bench = Bench(batch_size=1)
    taker = bench.taker()
    bench.put("a")
    waiting = bench.put("a")
    bench.put("b")
    bench.policy.heard([Header("other", "a"), Header("End", "b; a ;nobody")])
    assert isinstance(waiting.error, errors.SequenceClosed)
    taker.finish()
    taker.finish()
    assert opens(bench.put("a"))
    assert opens(bench.put("b"))


def test_idleness_counts_from_the_last_answer_and_is_told_once() -> None:
    bench = Bench(batch_size=1)
    taker = bench.taker()
    bench.put("a")
    bench.clock.advance(IDLE * 3)
    taker.finish()
    bench.clock.advance(IDLE * 0.9)
    assert not opens(bench.put("a"))
    taker.finish()
    bench.clock.advance(IDLE * 2.1)
    with pytest.raises(errors.SequenceClosed):
        bench.put("a")
    assert opens(bench.put("a"))


def test_without_limits_in_time_a_sequence_is_as_old_as_it_likes_but_not_idle_for_ever() -> None:
    """Its client may never have learned its id: the place it holds comes back."""
    bench = Bench(batch_size=1, sequence_max_idle_ms=0, sequence_timeout_ms=0)
    taker = bench.taker()
    for _ in range(100):
        bench.put("a")
        taker.finish()
        bench.clock.advance(IDLE_MS / 1000 - 1)
    assert not opens(bench.put("a"))
    taker.finish()
    bench.clock.advance(IDLE_MS / 1000)
    with pytest.raises(errors.SequenceClosed):
        bench.put("a")


def test_age_closes_a_sequence_though_it_is_busy() -> None:
    bench = Bench(batch_size=1)
    taker = bench.taker()
    running, waiting = bench.put("a"), bench.put("a")
    bench.clock.advance(AGE)
    assert isinstance(waiting.error, errors.SequenceClosed)
    assert running.state is State.SENT
    with pytest.raises(errors.SequenceClosed):
        bench.put("a", start=True)
    taker.finish()
    assert opens(bench.put("a"))


def test_a_sequence_whose_worker_died_is_lost_once() -> None:
    bench = Bench(batch_size=1)
    taker, other = bench.taker(), bench.taker()
    bench.put("a")
    taker.finish()
    ran, waited = bench.put("a"), bench.put("a")
    taker.die(started=True)
    assert isinstance(ran.error, errors.WorkerDied)
    assert isinstance(waited.error, errors.SequenceLost)
    assert opens(bench.put("a")), "somebody was told"
    other.finish()
    other.die(started=True)
    bench.taker()
    with pytest.raises(errors.SequenceLost):
        bench.put("a")
    assert opens(bench.put("a"))


def test_what_waits_behind_a_first_request_that_died_is_lost_too() -> None:
    bench = Bench(batch_size=1)
    taker = bench.taker()
    first, second = bench.put("a"), bench.put("a")
    taker.die(started=True)
    assert isinstance(first.error, errors.WorkerDied)
    assert isinstance(second.error, errors.SequenceLost)


def test_the_start_header_begins_a_lost_sequence_anew() -> None:
    bench = Bench(batch_size=1)
    taker = bench.taker()
    bench.put("a")
    taker.finish()
    taker.die(started=False)
    bench.put("a", start=True)
    assert opens(bench.put("a")) is False


def test_a_sequence_of_which_nothing_has_begun_moves() -> None:
    bench = Bench(batch_size=1)
    taker = bench.taker()
    requests = [bench.put("a") for _ in range(3)]
    taker.die(started=False)
    assert {request.state for request in requests} == {State.QUEUED}
    other = bench.taker()
    for _ in range(3):
        other.finish()
    assert other.batches == [[request] for request in requests]


def test_what_a_worker_that_was_let_go_hands_back_is_answered() -> None:
    """P01: its sequence went when it was let go, so nobody else can take it."""
    bench = Bench(batch_size=1)
    taker = bench.taker()
    request = bench.put("a")
    bench.policy.leave(taker)
    taker.die(started=False)
    assert isinstance(request.error, errors.SequenceLost)


class AnySequences(RuleBasedStateMachine):
    """Whatever comes in whatever order: one of a sequence at a time, in order, with one worker, and none is lost."""

    steps = False

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(steps=self.steps)
        self.takers: list[Taker] = []
        self.all_takers: list[Taker] = []

    @rule(name=st.sampled_from("abcdef"), start=st.booleans(), end=st.integers(0, 5))
    def arrives(self, name: str, start: bool, end: int) -> None:
        with contextlib.suppress(errors.SequenceLimit, errors.SequenceEnded):
            self.bench.put(name, start=start, end=end == 0)

    @rule()
    def a_worker_comes(self) -> None:
        if len(self.takers) < 3:
            self.takers.append(self.bench.taker())
            self.all_takers.append(self.takers[-1])

    @rule(number=st.integers(0, 40))
    def client_goes(self, number: int) -> None:
        if number < len(self.bench.requests):
            self.bench.requests[number].cancel()

    @rule(number=st.integers(0, 2), which=st.integers(0, SIZE - 1))
    def finishes(self, number: int, which: int) -> None:
        if number < len(self.takers) and (running := self.takers[number].running):
            self.takers[number].finish(*[running[which % len(running)]] if self.steps else ())

    @rule(number=st.integers(0, 2), which=st.integers(0, SIZE - 1))
    def streams(self, number: int, which: int) -> None:
        if number < len(self.takers) and (running := self.takers[number].running):
            self.takers[number].begin(running[which % len(running)])

    @rule(number=st.integers(0, 2), started=st.booleans())
    def dies(self, number: int, started: bool) -> None:
        if number < len(self.takers):
            self.takers.pop(number).die(started=started)

    @rule(number=st.integers(0, 2))
    def is_let_go(self, number: int) -> None:
        """Scaled down: it finishes what it runs."""
        if number < len(self.takers):
            leaving = self.takers.pop(number)
            self.bench.policy.leave(leaving)
            running, leaving.running = leaving.running, []
            for request in running:
                request.finish()
            if running:
                self.bench.policy.finished(leaving, running, 0.01)

    @rule(number=st.integers(0, 2), started=st.booleans())
    def is_let_go_and_dies(self, number: int, started: bool) -> None:
        """Scaled down, and killed before it has finished."""
        if number < len(self.takers):
            leaving = self.takers.pop(number)
            self.bench.policy.leave(leaving)
            running = list(leaving.running)
            leaving.die(started=started)
            assert all(request.state is State.DONE for request in running), "nobody holds it any more"

    @rule(name=st.sampled_from("abcdef"))
    def handler_ends(self, name: str) -> None:
        self.bench.policy.heard([Header("end", name)])

    @rule(seconds=st.sampled_from([0.01, DELAY, IDLE / 2, IDLE, AGE]))
    def time_passes(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)

    @invariant()
    def a_batch_has_one_of_each_sequence(self) -> None:
        for taker in self.all_takers:
            for batch in taker.batches:
                assert 1 <= len(batch) <= SIZE
                names = [sequence_of(request) for request in batch]
                assert len(set(names)) == len(names)

    @invariant()
    def a_sequence_has_one_worker_and_only_its_last_request_is_silent(self) -> None:
        running = [(sequence_of(request), taker, request) for taker in self.takers for request in taker.running]
        for name in {name for name, _, _ in running}:
            mine = [(taker, request) for other, taker, request in running if other == name]
            assert len({taker for taker, _ in mine}) == 1
            for taker, request in mine[:-1]:
                assert request in taker.begun

    @invariant()
    def every_sequence_runs_in_its_order(self) -> None:
        for taker in self.all_takers:
            sent = [request for batch in taker.batches for request in batch]
            for name in "abcdef":
                numbers = [request.number for request in sent if sequence_of(request) == name]
                assert numbers == sorted(numbers)

    @invariant()
    def what_waits_is_counted(self) -> None:
        queued = [request for request in self.bench.requests if request.state is State.QUEUED]
        assert self.bench.policy.depth == len(queued)
        assert len({sequence_of(request) for request in queued}) <= SEQUENCES

    @invariant()
    def a_worker_is_never_overfull(self) -> None:
        assert all(len(taker.running) <= SIZE for taker in self.takers)

    def teardown(self) -> None:
        self.a_worker_comes()
        for _ in range(len(self.bench.requests) + 1):
            for taker in self.takers:
                if taker.running:
                    taker.finish()
            self.bench.clock.advance(DELAY)
        for taker in self.takers:
            if taker.running:
                taker.finish()
        assert all(request.state is State.DONE for request in self.bench.requests), "a request was lost"
        self.bench.clock.advance(IDLE * 2)
        for name in range(SEQUENCES):  # every place is free again
            self.bench.put(f"new {name}", start=True)


class AnySequencesInSteps(AnySequences):
    """The same where requests join between two steps."""

    steps = True


TestAnySequences = AnySequences.TestCase
TestAnySequencesInSteps = AnySequencesInSteps.TestCase
