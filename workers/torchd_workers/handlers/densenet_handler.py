"""DenseNetHandler: a tensor from the client, the model's output as a tensor back."""

from __future__ import annotations

import io
import time
from pickle import UnpicklingError
from typing import Any

import torch

from torchd_workers.context import Context
from torchd_workers.failures import PredictionException
from torchd_workers.handlers.base import BaseHandler
from torchd_workers.handlers.rows import payload_of


class DenseNetHandler(BaseHandler):
    """Takes what torch.save wrote of one tensor, answers what torch.save writes of the output."""

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's output for a tensor."""
        with torch.no_grad():
            return self.model(data.to(self.device), *args, **kwargs)

    def handle(self, data: Any, context: Context) -> list[Any]:
        """One tensor per request, each with a first dimension of 1."""
        started = time.perf_counter()
        self.context = context
        tensors = [tensor_from(payload_of(row)) for row in data]
        outputs = self.inference(_stacked(tensors)).cpu()
        milliseconds = round((time.perf_counter() - started) * 1000, 2)
        if context.metrics is not None:
            context.metrics.add_time("HandlerTime", milliseconds, None, "ms")
        # Clones, as torch.save writes all the storage that a tensor looks into.
        return [output.clone() for output in outputs.split(1)]


def tensor_from(payload: Any) -> torch.Tensor:
    """The dense tensor a client saved; raises PredictionException(400). No code of the client's runs (S21)."""
    if not isinstance(payload, bytes | bytearray):
        raise PredictionException(f"the input is a {type(payload).__name__}; send the bytes that torch.save wrote", 400)
    try:
        # A sparse tensor's indices may point anywhere unless they are checked.
        with torch.sparse.check_sparse_tensor_invariants():  # type: ignore[no-untyped-call]
            saved = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, OSError, TypeError) as error:
        raise PredictionException("the input is not what torch.save writes of one tensor", 400) from error
    if not isinstance(saved, torch.Tensor) or saved.layout != torch.strided:
        raise PredictionException(f"the input holds a {type(saved).__name__}; it must be one dense tensor", 400)
    return saved


def _stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    if len({tensor.shape for tensor in tensors}) > 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise PredictionException(f"the tensors of a batch must have one shape; these have {shapes}", 400)
    return torch.stack(tensors)
