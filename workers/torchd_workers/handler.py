"""What loading a model gives: something to call with each batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchd_workers.context import Context

Row = dict[str, Any]
Entry = Callable[[list[Row], Context], Any]


@dataclass(frozen=True, slots=True)
class Handler:
    """The user's entry point and the context it is called with."""

    entry: Entry
    context: Context
    # What its requests are batched by: "tokens", "pixels", "bytes" or, in the order of arrival, "".
    cost: str = ""

    def __call__(self, rows: list[Row]) -> Any:
        """The handler's output for these rows, unchecked."""
        return self.entry(rows, self.context)
