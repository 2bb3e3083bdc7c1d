"""A running sum for each sequence."""

from __future__ import annotations

from typing import Any


class Sequences:
    """Keeps the sums in the worker, which is where the sequence stays."""

    def initialize(self, context: Any) -> None:
        """No sums yet."""
        self.sums: dict[str, int] = {}

    def handle(self, data: list[Any], context: Any) -> Any:
        """Adds each request's number to its sequence's sum."""
        return [self._add(index, row, context) for index, row in enumerate(data)]

    def _add(self, index: int, row: Any, context: Any) -> str:
        sequence = context.get_sequence_id(index)
        number = row.get("data") or row.get("body") or b"0"
        text = number.decode() if isinstance(number, (bytes, bytearray)) else str(number)
        self.sums[sequence] = self.sums.get(sequence, 0) + int(text)
        return str(self.sums[sequence])
