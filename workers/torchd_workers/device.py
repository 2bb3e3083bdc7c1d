"""How much of the machine the model's libraries use."""

from __future__ import annotations

import sys


class ComputeThreads:
    """The worker's share of compute threads. The environment gave it to libraries at start; this changes it later."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._applied = 0
        self._is_fixed = False

    def fix(self, count: int) -> None:
        """Takes this number once and for all: the model's configuration asks for it."""
        self.change(count)
        self._is_fixed = True

    def change(self, count: int) -> None:
        """Asks for another number; 0 leaves the choice to the libraries."""
        if self._is_fixed:
            return
        self._count = count
        self.apply()

    def apply(self) -> None:
        """Tells torch, once it is there. Cheap when nothing changed; a number the handler set meanwhile stays."""
        torch = sys.modules.get("torch")
        set_num_threads = getattr(torch, "set_num_threads", None)
        if set_num_threads and self._count not in (0, self._applied):
            set_num_threads(self._count)
            self._applied = self._count
