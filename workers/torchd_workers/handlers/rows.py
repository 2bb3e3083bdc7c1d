"""Where a stock handler finds a request's input, and what may be wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torchd_workers.failures import PredictionException


class BadInput(PredictionException):
    """One client's mistake, said to that client: the others of the batch are answered without it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 400)


class NotOneBatch(ValueError):
    """The inputs of a batch are sound, each alone, and do not fit into one tensor."""


def stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensors as one; raises NotOneBatch where their shapes differ."""
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise NotOneBatch(f"the inputs of a batch have the shapes {', '.join(map(str, sorted(shapes)))}")
    return torch.stack(list(tensors))


def payload_of(row: Any) -> Any:
    """The part "data" of a request, else "body"; what an envelope has unpacked is the input itself."""
    if not isinstance(row, dict):
        return row
    for name in ("data", "body"):
        value = row.get(name)
        if value is not None:
            return value
    found = ", ".join(map(repr, row)) or "nothing"
    raise BadInput(f"the request has neither a part 'data' nor a part 'body'; it has {found}")
