"""Gives back what the envelope made of the request."""

from __future__ import annotations

from typing import Any


class Identity:
    """The identity."""

    def initialize(self, context: Any) -> None:
        """Nothing to load."""

    def handle(self, data: Any, context: Any) -> Any:
        """As it came."""
        return [_content(value) for value in data]


def _content(value: Any) -> Any:
    if isinstance(value, dict) and "datatype" in value:  # a tensor of the kservev2 envelope
        return value["data"]
    return value.decode() if isinstance(value, (bytes, bytearray)) else value
