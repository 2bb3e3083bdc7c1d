"""Gives back what the envelope made of the request."""

from __future__ import annotations

from typing import Any


class Identity:
    """The identity."""

    def initialize(self, context: Any) -> None:
        """Nothing to load."""

    def handle(self, data: Any, context: Any) -> Any:
        """As it came."""
        return [value.decode() if isinstance(value, (bytes, bytearray)) else value for value in data]
