"""The requests that are not answered yet, and the one timer that ends those whose deadline has passed.

A timer for each request would be made and taken back for nothing nearly every time: deadlines are far away and answers
near. So one rings at the earliest deadline there was, looks at all, and is set for the earliest there is by then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torchd_server.clock import Clock, Timer
from torchd_server.request import Request, State

# Between two looks at all requests: a deadline may be answered so much later.
LEAST_SECONDS = 0.005


class Deadlines:
    """Unanswered requests, in the order in which they came."""

    def __init__(self, clock: Clock, least_seconds: float = LEAST_SECONDS) -> None:
        self._clock = clock
        self._least = least_seconds
        self._watched: dict[int, Request] = {}
        self._rings_at = math.inf
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._watched)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._watched.values()))

    def watch(self, request: Request) -> None:
        """Expires it at its deadline, which only moves later."""
        self._watched[request.number] = request
        if request.deadline < self._rings_at:
            self._set(request.deadline)

    def forget(self, request: Request) -> None:
        """It has its outcome."""
        self._watched.pop(request.number, None)

    def close(self) -> None:
        """Takes the timer back."""
        self._rings_at = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, when: float) -> None:
        self.close()
        if when < math.inf:
            self._rings_at = when
            self._timer = self._clock.call_at(when, self._ring)

    def _ring(self) -> None:
        now = self._clock.time()
        try:
            for request in self:
                # A timer may ring up to a millisecond early, and one request's end may be another's.
                if request.deadline <= now and request.state is not State.DONE:
                    request.expire(now)
        finally:  # whatever one of them met with, the others are watched on
            earliest = min((request.deadline for request in self._watched.values()), default=math.inf)
            self._set(max(earliest, now + self._least))
