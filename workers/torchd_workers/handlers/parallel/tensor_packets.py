"""Tensors as they go from rank to rank: their bytes, and what they are in JSON. Nothing is pickled."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import distributed

# Room for what a result's tensors are called and how they look; a fixed length spares a message.
_HEAD_BYTES = 4096

Facts = list[tuple[str, str, list[int]]]


def facts_of(tensors: Mapping[str, torch.Tensor]) -> Facts:
    """The name, type and shape of each tensor."""
    return [(name, str(one.dtype).removeprefix("torch."), list(one.shape)) for name, one in tensors.items()]


def bytes_of(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The tensors' values one after the other."""
    return b"".join(_flat(one).cpu().numpy().tobytes() for one in tensors.values())


def tensors_from(facts: Facts, body: memoryview, device: torch.device) -> dict[str, torch.Tensor]:
    """The tensors again."""
    tensors, start = {}, 0
    for name, kind, shape in facts:
        dtype = _dtype(kind)
        size = math.prod(shape) * dtype.itemsize
        # A copy: the body's memory is the channel's, and may be read only.
        raw = torch.frombuffer(bytearray(body[start : start + size]), dtype=torch.uint8) if size else torch.empty(0)
        tensors[name] = (
            raw.view(dtype).reshape(shape).to(device) if size else torch.empty(shape, dtype=dtype, device=device)
        )
        start += size
    return tensors


def empty_from(facts: Facts) -> dict[str, torch.Tensor]:
    """Tensors without values, on the meta device."""
    return {name: torch.empty(shape, dtype=_dtype(kind), device="meta") for name, kind, shape in facts}


def send_tensors(tensors: Mapping[str, torch.Tensor], to: int, device: torch.device) -> None:
    """Sends named tensors to a rank that does not know how many there are, nor how they look."""
    head = json.dumps(facts_of(tensors)).encode()
    if len(head) > _HEAD_BYTES:
        raise ValueError(
            f"{len(tensors)} tensors are too many for one result: their names and shapes take {len(head)} bytes"
        )
    distributed.send(torch.frombuffer(bytearray(head.ljust(_HEAD_BYTES)), dtype=torch.uint8).to(device), to)
    for one in tensors.values():
        if one.numel():
            distributed.send(_flat(one), to)


def receive_tensors(source: int, device: torch.device) -> dict[str, torch.Tensor]:
    """What `send_tensors` sent."""
    head = torch.empty(_HEAD_BYTES, dtype=torch.uint8, device=device)
    distributed.recv(head, source)
    facts: Sequence[Any] = json.loads(head.cpu().numpy().tobytes())
    tensors = {}
    for name, kind, shape in facts:
        one = torch.empty(shape, dtype=_dtype(kind), device=device)
        if one.numel():
            distributed.recv(_flat(one), source)
        tensors[name] = one
    return tensors


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bytes, sharing its memory where it lies in one piece."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no type of tensors")
    return found
