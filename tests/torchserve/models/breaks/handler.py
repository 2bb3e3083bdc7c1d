"""Fails in initialize."""

from __future__ import annotations

from typing import Any


class Breaks:
    """A handler that cannot load."""

    def initialize(self, context: Any) -> None:
        """Raises."""
        raise RuntimeError("there is no weight")

    def handle(self, data: Any, context: Any) -> Any:
        """Is never called."""
        return data
