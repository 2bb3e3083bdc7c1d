"""Finds no memory when it is loaded."""

from __future__ import annotations

from typing import Any


class Hungry:
    """A class handler that never gets so far as to answer."""

    def initialize(self, context: Any) -> None:
        """Out of memory."""
        raise MemoryError("no memory is left")

    def handle(self, data: list[Any], context: Any) -> Any:
        """Nothing, for nobody."""
        return [None] * len(data)
