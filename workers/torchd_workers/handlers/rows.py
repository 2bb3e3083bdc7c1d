"""Where a stock handler finds a request's input."""

from __future__ import annotations

from typing import Any

from torchd_workers.failures import PredictionException


def payload_of(row: Any) -> Any:
    """The part "data" of a request, else "body"; what an envelope has unpacked is the input itself."""
    if not isinstance(row, dict):
        return row
    for name in ("data", "body"):
        value = row.get(name)
        if value is not None:
            return value
    found = ", ".join(map(repr, row)) or "nothing"
    raise PredictionException(f"the request has neither a part 'data' nor a part 'body'; it has {found}", 400)
