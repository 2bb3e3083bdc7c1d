"""How far a load has come: told to the daemon at most twice a second, or to the log with every tenth of the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

# Percent and a text, as context.report_progress takes them.
Report = Callable[[int, str], None]
INTERVAL_SECONDS = 0.5


def report_of(context: Any) -> Report | None:
    """The context's own way to tell the daemon; None where it has none."""
    report: Report | None = getattr(context, "report_progress", None)
    return report


class LoadProgress:
    """Counts the bytes of one load."""

    def __init__(
        self,
        total_bytes: int,
        report: Report | None,
        clock: Callable[[], float] = time.monotonic,
        what: str = "weights",
    ) -> None:
        self.done_bytes = 0
        self._total_bytes = max(total_bytes, 1)
        self._report = report
        self._clock = clock
        self._unit, self._unit_bytes = ("GB", 1e9) if total_bytes >= 1e9 else ("MB", 1e6)
        self._next_report = clock()
        self._logged_tenths = 0

    def advance(self, count: int, shard: str) -> None:
        """So many bytes more have come, out of this file."""
        self.done_bytes += count
        percent = min(100 * self.done_bytes // self._total_bytes, 100)
        done, total = self.done_bytes / self._unit_bytes, self._total_bytes / self._unit_bytes
        text = f"{done:.2f} of {total:.2f} {self._unit} of weights loaded, now from {shard}"
        now = self._clock()
        if self._report is not None and (now >= self._next_report or percent == 100):
            self._next_report = now + INTERVAL_SECONDS
            self._report(percent, text)
        # What the daemon is told it logs itself.
        if self._report is None and percent // 10 > self._logged_tenths:
            self._logged_tenths = percent // 10
            logger.info("%d%% %s", percent, text)
