"""DenseNetHandler: a tensor from the client, the model's output as a tensor back."""

from __future__ import annotations

import io
from typing import Any

import torch

from torchd_workers.handlers.base import BaseHandler
from torchd_workers.handlers.rows import BadInput, payload_of, stacked


class DenseNetHandler(BaseHandler):
    """Takes what torch.save wrote of one tensor, answers what torch.save writes of the output."""

    def preprocess(self, data: Any) -> torch.Tensor:
        """The tensors of the batch as one."""
        return stacked([tensor_from(payload_of(row)) for row in data])

    def postprocess(self, data: Any) -> list[Any]:
        """One tensor per request, each with a first dimension of 1."""
        # Clones, as torch.save writes all the storage that a tensor looks into.
        return [output.clone() for output in data.cpu().split(1)]


def tensor_from(payload: Any) -> torch.Tensor:
    """The dense tensor a client saved; raises BadInput. No code of the client's runs (S21)."""
    if not isinstance(payload, bytes | bytearray):
        raise BadInput(f"the input is a {type(payload).__name__}; send the bytes that torch.save wrote")
    try:
        # A sparse tensor's indices may point anywhere unless they are checked.
        with torch.sparse.check_sparse_tensor_invariants():  # type: ignore[no-untyped-call]
            saved = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a reader of foreign bytes raises whatever the bytes lead it to
        raise BadInput("the input is not what torch.save writes of one tensor") from error
    if not isinstance(saved, torch.Tensor) or saved.layout != torch.strided:
        raise BadInput(f"the input holds a {type(saved).__name__}; it must be one dense tensor")
    return saved
