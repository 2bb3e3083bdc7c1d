"""The ledger: what clients saw, what handlers ran, what the nemesis did; and the offline checker of the promises.

All three sides write the same clock (CLOCK_MONOTONIC is one for all processes of a machine). `check` looks at the
whole history at once and reports the smallest piece of it that breaks a promise (faults.md B3).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

PROMISED_LATENESS = 0.25
# Reason -> (gRPC code, HTTP status): architecture.md's table of errors.
REASONS = {
    "MODEL_NOT_FOUND": ("NOT_FOUND", 404),
    "VERSION_NOT_FOUND": ("NOT_FOUND", 404),
    "BAD_REQUEST": ("INVALID_ARGUMENT", 400),
    "QUEUE_FULL": ("RESOURCE_EXHAUSTED", 503),
    "NO_TICKET": ("RESOURCE_EXHAUSTED", 503),
    "SEQUENCE_LIMIT": ("RESOURCE_EXHAUSTED", 503),
    "SEQUENCE_CLOSED": ("ABORTED", 503),
    "SEQUENCE_LOST": ("ABORTED", 503),
    "NO_WORKER": ("UNAVAILABLE", 503),
    "DRAINING": ("UNAVAILABLE", 503),
    "MODEL_FAILED": ("FAILED_PRECONDITION", 503),
    "DEADLINE_IN_QUEUE": ("DEADLINE_EXCEEDED", 504),
    "DEADLINE": ("DEADLINE_EXCEEDED", 504),
    "CANCELLED": ("CANCELLED", 499),
    "HANDLER_ERROR": ("UNKNOWN", 503),
    "HANDLER_EXIT": ("UNKNOWN", 503),
    "BAD_OUTPUT": ("UNKNOWN", 503),
    "RESPONSE_TOO_LARGE": ("RESOURCE_EXHAUSTED", 503),
    "OUT_OF_MEMORY": ("RESOURCE_EXHAUSTED", 507),
    "WORKER_DIED": ("UNAVAILABLE", 500),
    "DEVICE_LOST": ("UNAVAILABLE", 507),
    "WORKER_TIMEOUT": ("DEADLINE_EXCEEDED", 500),
    "TOO_LARGE": ("RESOURCE_EXHAUSTED", 413),
}
# These say that the handler never saw the request.
NEVER_EXECUTED = {
    "MODEL_NOT_FOUND",
    "VERSION_NOT_FOUND",
    "BAD_REQUEST",
    "QUEUE_FULL",
    "NO_TICKET",
    "SEQUENCE_LIMIT",
    "NO_WORKER",
    "MODEL_FAILED",
    "DEADLINE_IN_QUEUE",
}
# A client's own gRPC library may end a call by itself, and then knows no reason.
ENDED_BY_THE_CLIENT = {"DEADLINE_EXCEEDED", "CANCELLED"}
WORKER_FAILURES = {"WORKER_DIED", "WORKER_TIMEOUT", "DEVICE_LOST"}


@dataclass(frozen=True, slots=True)
class Sent:
    """A client sent a request. `deadline` is a point in time; a `deadly` one brings down the worker that runs it."""

    id: str
    at: float
    deadline: float | None = None
    deadly: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """A client saw the end of a request: an echoed id, or an error's code and reason."""

    id: str
    at: float
    echo: str | None = None
    code: str | int = "OK"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A client cancelled, or aborted its connection: from here on it waits for nothing, and no answer reaches it."""

    id: str
    at: float


@dataclass(frozen=True, slots=True)
class Refused:
    """The connection failed before the server took the request: it must not have been executed."""

    id: str
    at: float


@dataclass(frozen=True, slots=True)
class Executed:
    """A handler began to run a request."""

    id: str
    at: float
    pid: int
    version: str


@dataclass(frozen=True, slots=True)
class Fault:
    """The nemesis did something to a process."""

    pid: int
    at: float
    kind: str


Event = Sent | Answered | GivenUp | Refused | Executed | Fault


class Violation(AssertionError):
    """A history breaks a promise; the text holds the promise and the events that show it."""

    def __init__(self, promise: str, why: str, events: list[Event]) -> None:
        self.promise = promise
        self.events = sorted(events, key=lambda event: event.at)
        start = self.events[0].at if self.events else 0.0
        lines = [f"  {event.at - start:+9.4f} s  {event}" for event in self.events]
        super().__init__("\n".join([f"{promise}: {why}", *lines]))


@dataclass(slots=True)
class Ledger:
    """Collects the events of one test; safe to write from many threads. `executions` is the handlers' file."""

    executions: Path
    events: list[Event] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def sent(self, *, timeout: float | None = None, deadly: bool = False) -> str:
        """Records that a request leaves now; returns its new id."""
        request = uuid4().hex
        now = time.monotonic()
        self._add(Sent(request, now, None if timeout is None else now + timeout, deadly))
        return request

    def answered(self, request: str, *, echo: str | None = None, code: str | int = "OK", reason: str = "") -> None:
        """Records how a request ended."""
        self._add(Answered(request, time.monotonic(), echo, code, reason))

    def given_up(self, request: str) -> None:
        """Records that the client has cancelled or gone."""
        self._add(GivenUp(request, time.monotonic()))

    def refused(self, request: str) -> None:
        """Records that the server could not be reached, or hung up without an answer."""
        self._add(Refused(request, time.monotonic()))

    def fault(self, pid: int, kind: str) -> None:
        """Records what the nemesis is about to do to a process."""
        self._add(Fault(pid, time.monotonic(), kind))

    def executed(self) -> list[Executed]:
        """What the handlers have written so far."""
        return [
            Executed(request, at, pid, version) for word, request, pid, version, at in self._lines() if word == "run"
        ]

    def told(self) -> set[str]:
        """Requests whose handler has seen that they are cancelled."""
        return {request for word, request, *_ in self._lines() if word == "told"}

    def history(self) -> list[Event]:
        """Everything, in order of time."""
        with self._lock:
            events = list(self.events)
        return sorted([*events, *self.executed()], key=lambda event: event.at)

    def _add(self, event: Event) -> None:
        with self._lock:
            self.events.append(event)

    def _lines(self) -> Iterator[tuple[str, str, int, str, float]]:
        for line in self.executions.read_text().splitlines() if self.executions.exists() else ():
            word, request, pid, version, at = line.split()
            yield word, request, int(pid), version, float(at)


def check(history: list[Event], *, lateness: float = PROMISED_LATENESS, unwind: float = PROMISED_LATENESS) -> None:
    """Raises the smallest Violation of P01 to P06 and P09 that the history shows; a good history passes in silence.

    `lateness` is what an answer may be late after its deadline; `unwind` the time a cancellation may take to reach
    the queue. Both in seconds: a loaded test machine may ask for more than the promise.
    """
    found = sorted(_violations(history, lateness, unwind), key=lambda violation: len(violation.events))
    if found:
        raise found[0]


def _violations(history: list[Event], lateness: float, unwind: float) -> Iterator[Violation]:
    faults = [event for event in history if isinstance(event, Fault)]
    sent = {event.id: event for event in history if isinstance(event, Sent)}
    deadly_pids = {e.pid for e in history if isinstance(e, Executed) and e.id in sent and sent[e.id].deadly}
    stories: dict[str, list[Event]] = {request: [] for request in sent}
    for event in history:
        if not isinstance(event, Fault):
            stories.setdefault(event.id, []).append(event)
    for request, story in stories.items():
        if request not in sent:
            yield Violation("P01", "an answer or an execution of a request that nobody sent", story)
            continue
        yield from _one_request(story, sent[request], lateness, unwind)
        yield from _isolation(story, faults, deadly_pids)


def _one_request(story: list[Event], sent: Sent, lateness: float, unwind: float) -> Iterator[Violation]:
    ends = [event for event in story if isinstance(event, Answered)]
    given_up = [event for event in story if isinstance(event, GivenUp)]
    runs = [event for event in story if isinstance(event, Executed)]
    refused = [event for event in story if isinstance(event, Refused)]
    if refused and runs:
        yield Violation("P01", "a request that was accepted and executed, but got no answer", story)
    if not ends and not given_up and not refused:
        yield Violation("P01", "a request without an answer", story)
    if len(ends) > 1:
        yield Violation("P01", f"a request with {len(ends)} answers", story)
    if len(runs) > 1:
        yield Violation("P04", f"a request that was executed {len(runs)} times", story)
    for end in ends:
        yield from _one_answer(end, story, sent, runs, lateness)
    for leaving in given_up:
        late = [run for run in runs if run.at > leaving.at + unwind]
        if late:
            yield Violation("P09", f"executed {late[0].at - leaving.at:.3f} s after its client had gone", story)
    if sent.deadline is not None and any(run.at > sent.deadline + unwind for run in runs):
        yield Violation("P09", "executed after its deadline", story)


def _one_answer(
    end: Answered, story: list[Event], sent: Sent, runs: list[Executed], lateness: float
) -> Iterator[Violation]:
    if sent.deadline is not None and end.at > sent.deadline + lateness:
        yield Violation("P02", f"answered {end.at - sent.deadline:.3f} s after its deadline", story)
    if end.code in ("OK", 200):
        if end.echo != sent.id:
            yield Violation("P05", f"got the answer of {end.echo!r}", story)
        if not runs:
            yield Violation("P05", "answered, but no handler ran it", story)
        return
    if end.code in ENDED_BY_THE_CLIENT and not end.reason:
        return
    if isinstance(end.code, str) or end.reason:
        expected = REASONS.get(end.reason)
        if expected is None or end.code not in expected:
            yield Violation("P03", f"code {end.code} with reason {end.reason!r} is not in the table of errors", story)
    elif end.code not in {status for _, status in REASONS.values()}:
        yield Violation("P03", f"HTTP status {end.code} is not in the table of errors", story)
    if runs and end.reason in NEVER_EXECUTED:
        yield Violation("P09", f"{end.reason} says it never ran, but it did", story)


def _isolation(story: list[Event], faults: list[Fault], deadly_pids: set[int]) -> Iterator[Violation]:
    """Only what a broken worker held may fail with it."""
    pids = {event.pid for event in story if isinstance(event, Executed)}
    for end in story:
        if not isinstance(end, Answered) or end.reason not in WORKER_FAILURES:
            continue
        # Without an execution the worker died between taking the batch and the first line of the handler.
        suspects = pids or {fault.pid for fault in faults} | deadly_pids
        if suspects.isdisjoint({fault.pid for fault in faults if fault.at <= end.at} | deadly_pids):
            yield Violation("P06", f"{end.reason}, but nothing happened to its worker", story)


def echo_of(body: bytes) -> str | None:
    """The id in a zoo handler's answer."""
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    return answer.get("id") if isinstance(answer, dict) else None
