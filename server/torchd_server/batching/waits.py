"""How long an idle worker waits for a batch to fill: `full` as TorchServe does, `adaptive` only while it can pay.

Why adaptive waits at all. Going at once whenever a worker is idle is best for a lone client, and wrong for clients that
answer each other's pace: of eight clients served together, the first to come back would be sent alone, the other seven
would wait for it, and every second batch would hold one request: half the throughput. So an idle worker waits while
company can be expected, and three observations say whether it can:

- as many as were in the system at once lately (waiting or running, the most of the last few batches) are here: nobody
  else is known, so nothing is worth waiting for. With one client this is always so, and a lone request never waits.
  One batch in eight of several clients waits all the same: others may be held up on their way here by how soon the
  batches before it left, and nobody would ever know of them.
- nobody has come for `linger` seconds, a quarter of what a batch lately cost (1 ms at least): who was expected has gone
  or thinks. Waiting then costs at most that quarter, and never more than the whole delay.
- the whole delay is over, counted from when a worker could have taken the oldest request: an upper bound, not a price.

`scripts/bench_batching.py` shows both rules side by side.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Protocol

LINGER_SHARE = 0.25
LINGER_LEAST_SECONDS = 0.001
COST_WEIGHT = 0.2
REMEMBERED_BATCHES = 8
# How long a batch of one waits for company at most, and how fast requests must come for that to pay.
COMPANY_SECONDS = 0.001
COMPANY_GAP_SECONDS = 0.0006
# A pause counts for no more than this: a dozen quick arrivals make up for it.
LONGEST_GAP_SECONDS = 0.006


class BatchWait(Protocol):
    """Says until when an idle worker waits for more requests than are queued."""

    def opened(self, now: float) -> None:
        """A worker is idle and the first request is here: collecting begins."""

    def arrived(self, now: float, in_system: int) -> None:
        """A request was queued; `in_system` wait or run now, it included."""

    def left(self, in_system: int) -> None:
        """A batch went to a worker; `in_system` wait or run now, it included."""

    def ran(self, seconds: float) -> None:
        """A batch took so long in its worker."""

    def until(self, oldest: float, queued: int, running: int) -> float:
        """The time at which what is queued goes; the oldest of it came at `oldest`. In the past: at once."""


class FullWait:
    """The whole delay, counted from the moment a worker takes the first request, as TorchServe counts it."""

    def __init__(self, delay_seconds: float) -> None:
        self._delay = delay_seconds
        self._opened = 0.0

    def opened(self, now: float) -> None:
        """The delay runs from now."""
        self._opened = now

    def arrived(self, now: float, in_system: int) -> None:
        """Changes nothing."""

    def left(self, in_system: int) -> None:
        """Changes nothing."""

    def ran(self, seconds: float) -> None:
        """Changes nothing."""

    def until(self, oldest: float, queued: int, running: int) -> float:
        """The end of the delay."""
        return self._opened + self._delay


class AdaptiveWait:
    """Only while company can be expected, never longer than the delay (the rule stands in the module's docstring)."""

    def __init__(self, delay_seconds: float) -> None:
        self._delay = delay_seconds
        self._last_arrival = 0.0
        self._opened = 0.0
        # The most in the system at once, one entry for each of the last batches and one for now: with several workers
        # the clients of one batch are still on their way back when the next batch leaves.
        self._peaks = deque([0], maxlen=REMEMBERED_BATCHES)
        self._batches = 1
        self._cost = 0.0

    def opened(self, now: float) -> None:
        """Lingering counts from here at the earliest."""
        self._opened = now

    def arrived(self, now: float, in_system: int) -> None:
        """Company came."""
        self._last_arrival = now
        self._peaks[-1] = max(self._peaks[-1], in_system)

    def left(self, in_system: int) -> None:
        """From here the most in the system at once is counted anew; the oldest count is forgotten."""
        self._peaks.append(in_system)
        self._batches += 1

    def ran(self, seconds: float) -> None:
        """Follows the cost of a batch."""
        self._cost = seconds if self._cost == 0.0 else self._cost + COST_WEIGHT * (seconds - self._cost)

    def until(self, oldest: float, queued: int, running: int) -> float:
        """At once if everybody known is here, else when lingering stops paying or the delay is over."""
        known = max(self._peaks)
        if queued + running >= known and (known <= 1 or self._batches % REMEMBERED_BATCHES):
            return oldest
        linger = max(LINGER_LEAST_SECONDS, LINGER_SHARE * self._cost)
        return min(max(oldest, self._opened) + self._delay, max(self._last_arrival, self._opened) + linger)


class Company:
    """For batches of one whose work is less than the way there and back: those who are about to come go together.

    As `AdaptiveWait`, in small: while requests come thick and fast, as many as were in the system at once lately are
    worth waiting for, a millisecond at most. How many clients there are shows only if others than those known may
    join, so one group in eight waits for whoever else comes. A lone client never waits.
    """

    def __init__(self) -> None:
        self._last_arrival = 0.0
        self._opened = 0.0
        self._peaks = deque([0], maxlen=REMEMBERED_BATCHES)
        self._groups = 1
        # The time between two arrivals, lately.
        self._gap = LONGEST_GAP_SECONDS

    def opened(self, now: float) -> None:
        """A worker is idle and the first request is here."""
        self._opened = now

    def arrived(self, now: float, in_system: int) -> None:
        """A request was queued; `in_system` wait or run now, it included."""
        gap = min(now - self._last_arrival, LONGEST_GAP_SECONDS)
        self._gap += COST_WEIGHT * (gap - self._gap)
        self._last_arrival = now
        if in_system > self._peaks[-1]:
            self._peaks[-1] = in_system

    def left(self, in_system: int) -> None:
        """A group went to a worker."""
        self._peaks.append(in_system)
        self._groups += 1

    def until(self, in_system: int) -> float:
        """The time at which those who wait go; in the past: at once."""
        known = max(self._peaks)
        if known <= 1 or self._gap > COMPANY_GAP_SECONDS or (in_system >= known and self._groups % REMEMBERED_BATCHES):
            return -math.inf
        return self._opened + COMPANY_SECONDS


class NoWait:
    """Never: who can join between two steps has nothing to wait for."""

    def opened(self, now: float) -> None:
        """Changes nothing."""

    def arrived(self, now: float, in_system: int) -> None:
        """Changes nothing."""

    def left(self, in_system: int) -> None:
        """Changes nothing."""

    def ran(self, seconds: float) -> None:
        """Changes nothing."""

    def until(self, oldest: float, queued: int, running: int) -> float:
        """At once."""
        return oldest


# Plug-ins may add to it (plugins.py).
WAITS: dict[str, Callable[[float], BatchWait]] = {"adaptive": AdaptiveWait, "full": FullWait}
