"""A model without its weights: the same modules on the meta device, to ask what a run would do."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch

Model = TypeVar("Model", bound=torch.nn.Module)


def skeleton_of(model: Model) -> Model:
    """A copy of the model whose tensors have shapes and no memory; what the model shares, the copy shares."""
    known: dict[int, object] = {}
    for tensor in _tensors(model):
        bare = tensor.detach().to("meta")
        if isinstance(tensor, torch.nn.Parameter):
            bare = torch.nn.Parameter(bare, requires_grad=False)
        known[id(tensor)] = bare
    return copy.deepcopy(model, known)


def bytes_of(*modules: torch.nn.Module) -> int:
    """What the weights of the modules take, each shared one once."""
    kept = {id(tensor): tensor.nbytes for module in modules for tensor in module.parameters()}
    return sum(kept.values())


def own_bytes_of(*modules: torch.nn.Module) -> int:
    """The same without the modules that are in them."""
    kept = {id(tensor): tensor.nbytes for module in modules for tensor in module.parameters(recurse=False)}
    return sum(kept.values())


def _tensors(model: torch.nn.Module) -> Iterable[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()
