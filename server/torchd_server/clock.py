"""The time, handed in to whoever needs it, so that tests can bring their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """What `call_at` gives."""

    def cancel(self) -> None:
        """Takes the call back."""


class Clock(Protocol):
    """Seconds on a clock that only goes forward, and calls at a time."""

    def time(self) -> float:
        """Now."""

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Calls back at `when`, or up to a millisecond before: look at the time again."""


class SystemClock:
    """The monotonic clock in full resolution; uvloop's own counts whole milliseconds."""

    time = staticmethod(time.monotonic)  # asked several times for each request

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Calls back from the running event loop."""
        return asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()), callback)
