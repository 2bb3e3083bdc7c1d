"""Weights that stay in their file: workers of one model on the CPU map it, and share one copy of its pages."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch


def load_mapped(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Loads a state dict whose tensors are mapped from a file, and lets the model use those instead of its copies.

    The copies are made first, so that everything is as ever: strictness, types, hooks of the model, weights that
    layers share, and lists in which a module keeps its weights. Only the memory under a weight is then another.
    """
    model.load_state_dict(weights)
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, weight in own.items():
            mapped = weights.get(name)
            if mapped is not None and _is_same(weight, mapped):
                weight.data = mapped
    _give_back()


def _is_same(weight: torch.Tensor, mapped: torch.Tensor) -> bool:
    """A weight in another type, layout or place than the file's needs memory of its own."""
    return (
        weight.dtype is mapped.dtype
        and weight.device == mapped.device
        and weight.shape == mapped.shape
        and weight.stride() == mapped.stride()
        and torch.equal(weight, mapped)
    )


def _give_back() -> None:
    """The allocator keeps what the copies took for later; many small pieces, which nobody asks for again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
