"""What ranks say to each other, without processes: every message goes through the codec and into a queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pytest
from harness.eventually import eventually
from hypothesis import given, settings
from hypothesis import strategies as st

from torchd_protos.frames import (
    Batch,
    Call,
    Cancel,
    FrameReader,
    Item,
    Load,
    Message,
    Outcome,
    Part,
    Reply,
    Settings,
    Step,
    Task,
    Unload,
    encode,
)
from torchd_workers.channel import RunningRequest
from torchd_workers.context import Context
from torchd_workers.device import ComputeThreads
from torchd_workers.follower import AHEAD, FollowerGroup
from torchd_workers.follower_loop import FollowerLoop
from torchd_workers.group import OutOfStep
from torchd_workers.handler import Handler
from torchd_workers.leader import LeaderGroup
from torchd_workers.metrics import Metrics
from torchd_workers.step_loop import StepLoop


class Left(BaseException):
    """The process would have left."""


def leave(reason: str) -> NoReturn:
    raise Left(reason)


class Line:
    """A socket's one direction, and a main thread's queue: what is sent here is received here."""

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank
        self.waiting: deque[Message] = deque()

    def send(self, message: Message) -> None:
        self.waiting += FrameReader().feed(b"".join(encode(message)))

    def put(self, message: Message) -> None:
        self.waiting.append(message)

    def receive(self) -> Message:
        return self.waiting.popleft()

    def receive_within(self, seconds: float) -> Message | None:
        return self.waiting.popleft() if self.waiting else None

    def close(self) -> None:
        pass


def leader_of(*followers: Line, same_rows: bool = True) -> LeaderGroup:
    return LeaderGroup(followers, same_rows, leave, patience_seconds=0.05)


def follower_of(leader: Line, inbox: Line, rank: int = 1) -> FollowerGroup:
    return FollowerGroup(rank, 2, leader, inbox, True, leave, patience_seconds=0.05)


def context_of(group: LeaderGroup | FollowerGroup) -> Context:
    context = Context("m", "folder", {}, 1, None, metrics=Metrics([].append, "m"))
    context.group = group
    return context


# --- after a call that raised


def ended(group: LeaderGroup, *outcomes: tuple[Line, Outcome]) -> None:
    """The leader's first call raises; the followers have said this of theirs."""
    group.begin(Step(), context_of(group))
    for line, outcome in outcomes:
        group.hear(line, outcome)
    group.end(failed=True)


def test_a_leader_whose_call_raised_goes_on_when_it_raised_everywhere() -> None:
    lines = Line(1), Line(2)
    ended(leader_of(*lines), *[(line, Outcome(1, True)) for line in lines])
    assert lines[0].waiting[-1] == Outcome(1, True)


@pytest.mark.parametrize("said", [Outcome(1, False), Outcome(2, True), None], ids=str)
def test_a_leader_whose_call_raised_leaves_when_a_follower_says_otherwise_or_nothing(said) -> None:
    lines = Line(1), Line(2)
    outcomes = [(lines[0], Outcome(1, True))] + ([(lines[1], said)] if said else [])
    with pytest.raises(Left, match=r"out of step: call 1 of the handler raised on rank 0.* rank 2"):
        ended(leader_of(*lines), *outcomes)


def test_a_follower_that_is_back_is_enough_where_the_leader_alone_is_called() -> None:
    line = Line(1)
    group = leader_of(line, same_rows=False)
    context = context_of(group)
    group.begin(Batch(), context)
    group.call("work")
    group.hear(line, Outcome(1, False))
    group.end(failed=True)
    group.begin(Batch(), context)
    group.call("work")
    with pytest.raises(Left, match=r"after 0\.05 s rank 1 has not said"):
        group.end(failed=True)


def test_nobody_is_asked_where_nobody_had_a_task() -> None:
    line = Line(1)
    group = leader_of(line, same_rows=False)
    group.begin(Batch(), context_of(group))
    group.end(failed=True)
    assert not line.waiting


def test_a_follower_that_failed_alone_is_told_so_whoever_ends_first() -> None:
    line = Line(1)
    group = leader_of(line)
    context = context_of(group)
    group.begin(Step(), context)
    group.hear(line, Outcome(1, True))
    group.end(failed=False)
    assert line.waiting[-1] == Outcome(1, False)
    line.waiting.clear()
    group.begin(Step(), context)
    group.end(failed=False)
    assert not any(isinstance(message, Outcome) for message in line.waiting)
    group.hear(line, Outcome(2, True))
    assert line.waiting[-1] == Outcome(2, False)


def test_a_leader_takes_outcomes_only() -> None:
    with pytest.raises(Left, match="rank 1 sent a Step out of turn"):
        leader_of(Line(1)).hear(Line(1), Step())


@pytest.mark.parametrize(
    ("said", "goes_on"),
    [
        ([Outcome(1, True)], True),
        ([Settings(3), Task("torchd.agree", "[]"), Outcome(1, True)], True),
        ([Outcome(1, False)], False),
        ([Step()], False),
        ([Batch()], False),
        ([Outcome(2, True)], False),
        ([], False),
        ([Unload()], False),
    ],
    ids=str,
)
def test_a_follower_whose_call_raised_goes_on_only_if_the_leaders_has_too(said, goes_on) -> None:
    to_leader, inbox = Line(), Line()
    inbox.waiting += said
    group = follower_of(to_leader, inbox)
    group.calls = 1
    if goes_on:
        group.fail("the traceback")
    else:
        with pytest.raises(Left, match="raised on rank 1 and did not on rank 0\nthe traceback"):
            group.fail("the traceback")
    assert list(to_leader.waiting) == [Outcome(1, True)]
    assert list(group._deferred) == [message for message in said if isinstance(message, Settings)]


def test_a_follower_that_waits_to_agree_fails_with_its_leader_and_does_not_ask_twice() -> None:
    to_leader, inbox = Line(), Line()
    inbox.waiting += [Settings(3), Outcome(1, True)]
    group = follower_of(to_leader, inbox)
    group.calls = 1
    for _ in range(2):
        with pytest.raises(OutOfStep):
            group.agree([True])
    group.fail("")
    assert group.receive() == Settings(3)


@pytest.mark.parametrize("said", [Step(), Batch(), Task("other"), Outcome(1, False)], ids=str)
def test_a_follower_that_waits_to_agree_leaves_when_the_leader_does_something_else(said) -> None:
    inbox = Line()
    inbox.put(said)
    with pytest.raises(Left, match="rank 1 waited to agree with the leader, which went on with"):
        follower_of(Line(), inbox).agree([True])


def test_names_of_tasks_are_the_handlers_but_for_ours() -> None:
    with pytest.raises(ValueError, match=r"'torchd.agree' is torchd's"):
        leader_of().serve("torchd.agree", print)


def test_only_the_leader_calls() -> None:
    with pytest.raises(RuntimeError, match="only the leader calls; this is rank 1 of 2, which cannot call 'x'"):
        follower_of(Line(), Line()).call("x")


def test_a_follower_reads_only_so_far_ahead() -> None:
    """Else a leader that waits for nobody would fill the memory of a follower that is slower."""

    said: list[str] = []

    class Told(Line):
        def messages(self) -> Iterator[Message]:
            for _ in range(AHEAD + 1):
                said.append("step")
                yield Step()
            said.append("end")

    inbox = Line()
    group = follower_of(Told(), inbox)
    group.dismissed = True
    group.start()
    eventually(lambda: len(said) > AHEAD)
    assert (len(inbox.waiting), said[-1]) == (AHEAD, "step")
    assert group.receive() == Step()
    eventually(lambda: said[-1] == "end")


# --- the step loop


@dataclass
class Seen:
    """What one rank's handler was called with: at each step the ids, the rows and the seconds left."""

    steps: list[tuple[list[str], list[Any], list[float]]] = field(default_factory=list)

    def handle(self, rows: list[Any], context: Context) -> list[str]:
        ids = list((context.request_ids or {}).values())
        left = [context.time_remaining(at) for at in range(len(rows))]
        self.steps.append((ids, [{name: bytes(body) for name, body in row.items()} for row in rows], left))
        if any(request.endswith("!") and len(self.steps) % 3 == 0 for request in ids):
            raise ValueError("on every rank at the same step")
        if context.group is not None and context.group.is_leader:
            criteria = [lambda value, of=request: sum(map(ord, of)) % 4 == len(self.steps) % 4 for request in ids]
            context.stopping_criteria = criteria
        return ["value"] * len(rows)


class QuietChannel:
    """The leader's link to the daemon, of which nothing is looked at here."""

    def __init__(self) -> None:
        self.running: dict[int, RunningRequest] = {}

    def requests(self, batch: Batch) -> list[RunningRequest]:
        return [
            self.running.setdefault(item.request, RunningRequest(item.request, item.remaining_ms))
            for item in batch.items
        ]

    def begin(self, step: int) -> None:
        pass

    def send(self, *messages: Message) -> None:
        pass

    def offer_chunk(self, request: RunningRequest, chunk: Reply) -> None:
        pass

    def end(self, request: RunningRequest, answer: Message) -> None:
        request.finished = True


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.lists(st.sampled_from(["a", "b", "c", "d!"]), min_size=1, max_size=3)),
        st.tuples(st.just("cancel"), st.integers(1, 30)),
        st.tuples(st.just("step"), st.none()),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(EVENTS)
def test_every_rank_steps_with_the_same_requests_whatever_joins_ends_and_fails(events) -> None:
    followers, from_followers = [Line(1), Line(2)], [Line(), Line()]
    leading, channel, load = leader_of(*followers), QuietChannel(), Load(loop="step")
    seen = [Seen(), Seen(), Seen()]
    leader = StepLoop(channel, Handler(seen[0].handle, context_of(leading)), load, leading)
    loops = []
    for rank, (inbox, back) in enumerate(zip(followers, from_followers, strict=True), 1):
        group = follower_of(back, inbox, rank)
        loops.append(
            FollowerLoop(channel, group, Handler(seen[rank].handle, context_of(group)), load, ComputeThreads(0))
        )
    # Nobody fails alone here: each rank hears of a failure what it would.
    leading.end = lambda failed: [line.put(Outcome(leading.calls, True)) for line in followers if failed]  # type: ignore[method-assign]
    number = 0
    for event, value in events:
        if event == "join":
            items = []
            for name in value:
                number += 1
                call = Call(request_id=f"{number}{name}", parts=[Part("body", body=name.encode())])
                items.append(Item(number, 60_000, call))
            leader.take(Batch(number, items))
        elif event == "cancel" and value in channel.running:
            channel.running[value].cancelled = True
        elif leader.is_busy:
            leader.step()
    for inbox, loop in zip(followers, loops, strict=True):
        while inbox.waiting:
            loop.take(inbox.receive())
    assert seen[0].steps == seen[1].steps == seen[2].steps
    assert not [message for line in followers for message in line.waiting if not isinstance(message, Cancel)]
