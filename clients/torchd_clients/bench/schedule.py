"""When which call is asked, and which answers count. Without a clock: every time is handed in."""

from __future__ import annotations

from array import array
from collections import deque
from math import inf
from random import Random

from torchd_clients.bench.load import Load


class Schedule:
    """A load as one process asks it, and what came of it.

    Nothing counts until `measure` has said from when on. In the closed loop an answer counts that comes in the window,
    whenever it was asked (so the throughput has no edges); in the open loop one whose request fell due in it, however
    late it is answered. What fails without an answer counts as long as it began before the window's end.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._random = Random(load.seed)
        self._due: float | None = None
        self._again: deque[float] = deque()
        self._asked_in_window = 0
        self._answered_before = 0
        self._warm_until = inf
        self._begin = self._end = inf
        # Whether no answer came in the closed loop's window: then those count that come after it.
        self._was_empty: bool | None = None
        self.in_flight = 0
        self.latencies = array("d")
        self.errors: dict[str, int] = {}
        self.last = 0.0

    @property
    def _is_open_loop(self) -> bool:
        return self._load.rate > 0

    def start(self, now: float) -> None:
        """The warm-up begins, if there is one."""
        warm = self._load.warmup_seconds or self._load.warmup_requests
        self._warm_until = now + self._load.warmup_seconds
        if self._is_open_loop and warm:
            self._due = now + self._gap()

    def is_warm(self, now: float) -> bool:
        """Whether the warm-up is over; it goes on until `measure` is called."""
        return now >= self._warm_until and self._answered_before >= self._load.warmup_requests

    def measure(self, begin: float) -> None:
        """What comes from then on counts."""
        self._begin = self.last = begin
        self._end = begin + self._load.seconds if self._load.seconds else inf
        if self._is_open_loop and self._due is None:
            self._due = begin + self._gap()

    def take(self, now: float) -> float | None:
        """The start of a call that is to be asked now, None if none is."""
        if self._again:
            self.in_flight += 1
            return self._again.popleft()
        started = self._take_due(now) if self._is_open_loop else self._take_next(now)
        if started is not None:
            self.in_flight += 1
        return started

    def _take_next(self, now: float) -> float | None:
        load = self._load
        if now < self._begin:
            return now if load.warmup_requests or load.warmup_seconds else None
        if now >= self._end:
            return None
        # Those still on their way count when they come, so that exactly so many are counted.
        if load.requests and len(self.latencies) + sum(self.errors.values()) + self.in_flight >= load.requests:
            return None
        return now

    def _take_due(self, now: float) -> float | None:
        due = self._due
        if due is None or due > now:
            return None
        if due >= self._begin:
            if due >= self._end:
                self._due = None
                return None
            self._asked_in_window += 1
        is_last = self._load.requests and self._asked_in_window == self._load.requests
        self._due = None if is_last else due + self._gap()
        return due

    def next_due(self) -> float | None:
        """When the next call falls due in the open loop; None where none will."""
        return self._due

    def ended(self, started: float, now: float, reason: str) -> None:
        """A call was answered: well, or not for that reason."""
        self.in_flight -= 1
        if now < self._begin:
            self._answered_before += 1
        elif self._is_open_loop:
            if started >= self._begin:
                self._count(started, now, reason)
        elif now <= self._end or self._is_empty():
            self._count(started, now, reason)

    def failed(self, started: float, now: float, reason: str) -> None:
        """A call will never be answered."""
        self.in_flight -= 1
        if now < self._begin:
            self._answered_before += 1
        elif started >= self._begin or not self._is_open_loop:
            is_late = not self._is_open_loop and now > self._end and not self._is_empty()
            self._count(started, self.last if is_late else now, reason)

    def again(self, started: float) -> None:
        """A call was given back unseen: it is asked again."""
        self.in_flight -= 1
        self._again.append(started)

    def refused(self, now: float, reason: str) -> None:
        """A client of the closed loop could not even ask, if there was something to be asked."""
        if not self._is_open_loop and (started := self.take(now)) is not None:
            self.failed(started, now, reason)

    def give_up(self, before: float, now: float, reason: str) -> None:
        """Counts the calls that fell due before that time and that nobody was free to ask."""
        while self._due is not None and self._due < before and (started := self.take(now)) is not None:
            self.failed(started, now, reason)

    def is_over(self, now: float) -> bool:
        """Whether everything that counts has ended."""
        if now < self._begin or self.in_flight or self._again:
            return False
        if self._is_open_loop:
            return self._due is None or (self._due >= self._end and now >= self._end)
        load = self._load
        counted = len(self.latencies) + sum(self.errors.values())
        return now >= self._end or bool(load.requests and counted >= load.requests)

    @property
    def window(self) -> tuple[float, float]:
        """Begin and end of what was counted: to the last answer where that was later, or there was no other end."""
        if self._is_open_loop or self._end == inf or not self.last <= self._end:
            return self._begin, max(self.last, self._end if self._end < inf else self.last)
        # All requests were answered before the time was over.
        used = self._load.requests and len(self.latencies) + sum(self.errors.values()) >= self._load.requests
        return self._begin, self.last if used else self._end

    def _is_empty(self) -> bool:
        if self._was_empty is None:
            self._was_empty = not (self.latencies or self.errors)
        return self._was_empty

    def _count(self, started: float, now: float, reason: str) -> None:
        self.last = now
        if reason:
            self.errors[reason] = self.errors.get(reason, 0) + 1
        else:
            self.latencies.append((now - started) * 1000.0)

    def _gap(self) -> float:
        return self._random.expovariate(self._load.rate)
