"""A rule of batching: a batch goes once it is half as large as the most requests seen at once, or the delay is over."""

from __future__ import annotations


class HalfFull:
    """Never waits longer than the delay."""

    def __init__(self, delay_seconds: float) -> None:
        self._delay = delay_seconds
        self._opened = 0.0
        self._largest = 1

    def opened(self, now: float) -> None:
        """A worker is idle and the first request is here: the delay runs from now."""
        self._opened = now

    def arrived(self, now: float, in_system: int) -> None:
        """A request was queued; so many wait or run now."""
        self._largest = max(self._largest, in_system)

    def left(self, in_system: int) -> None:
        """A batch went to a worker."""

    def ran(self, seconds: float) -> None:
        """A batch took so long."""

    def until(self, oldest: float, queued: int, running: int) -> float:
        """When what is queued goes."""
        return oldest if 2 * queued >= self._largest else self._opened + self._delay
