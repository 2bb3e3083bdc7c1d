"""Describes itself: `describe` and `explain` come as request headers."""

from __future__ import annotations

from typing import Any


class Described:
    """A handler with a customized description."""

    def initialize(self, context: Any) -> None:
        """Nothing to load."""

    def handle(self, data: Any, context: Any) -> Any:
        """What the headers ask for."""
        if context.get_request_header(0, "describe") == "True":
            return [{"words": 3, "labels": ["a", "b"]}]
        if context.get_request_header(0, "explain") == "True":
            return [{"explained": True}]
        return ["plain"] * len(data)
