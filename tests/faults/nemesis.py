"""The nemesis: does harm to worker processes at given moments, and writes each deed into the ledger first."""

from __future__ import annotations

import os
import signal

from faults.ledger import Ledger


class Nemesis:
    """Kills, stops and continues processes by pid."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def kill(self, pid: int) -> None:
        """kill -9, seen by nobody before it happens."""
        self._do(pid, signal.SIGKILL)

    def stop(self, pid: int) -> None:
        """Hangs a process: it lives, and does nothing."""
        self._do(pid, signal.SIGSTOP)

    def wake(self, pid: int) -> None:
        """Ends a hang."""
        self._do(pid, signal.SIGCONT)

    def _do(self, pid: int, what: signal.Signals) -> None:
        self._ledger.fault(pid, what.name)
        os.kill(pid, what)
