"""Batches in the fixed shapes of a traced program, and its outputs without what the padding gave.

A batch, or an output, is one tensor, a tuple of them or a mapping by name; the first dimension of each are the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from torchd_workers.handlers.buckets import Bucket, Input


def length_of(declared: Sequence[Input], row: Sequence[torch.Tensor]) -> int | None:
    """How long a row is: the longest of its inputs that have a length."""
    lengths = [len(tensor) for tensor, entry in zip(row, declared, strict=True) if entry.sequence and tensor.dim()]
    return max(lengths, default=None)


def padded(tensor: torch.Tensor, entry: Input, bucket: Bucket) -> torch.Tensor:
    """The tensor in the bucket's shape."""
    if bucket.max_length is not None and entry.sequence and tensor.dim() > 1:
        tensor = lengthened(tensor, 1, bucket.max_length, entry.padding)
    return lengthened(tensor, 0, bucket.batch_size, entry.padding)


def lengthened(tensor: torch.Tensor, dimension: int, size: int, padding: float) -> torch.Tensor:
    """The tensor with `padding` behind what it has in a dimension, up to `size`."""
    missing = size - tensor.shape[dimension]
    if missing <= 0:
        return tensor
    shape = [missing if place == dimension else found for place, found in enumerate(tensor.shape)]
    return torch.cat([tensor, tensor.new_full(shape, padding)], dim=dimension)


def empty_batch(declared: Sequence[Input], bucket: Bucket) -> list[torch.Tensor] | None:
    """A batch of nothing but padding in the bucket's shape; None where too little is said of the inputs to make one."""
    batch = []
    for entry in declared:
        shape = entry.shape if entry.shape is not None else (None,) if entry.sequence else None
        if entry.dtype is None or shape is None or (None in shape and bucket.max_length is None):
            return None
        sizes = [bucket.batch_size, *(size if size is not None else bucket.max_length or 0 for size in shape)]
        batch.append(torch.full(sizes, entry.padding, dtype=entry.dtype))
    return batch or None


def mapped(output: Any, change: Callable[[torch.Tensor, Any], Any]) -> Any:
    """The same structure with every tensor changed; `change` gets the tensor and its place or name."""
    if isinstance(output, torch.Tensor):
        return change(output, 0)
    if isinstance(output, Mapping):
        return {name: change(tensor, name) for name, tensor in output.items()}
    if isinstance(output, list | tuple):
        return tuple(change(tensor, place) for place, tensor in enumerate(output))
    raise ValueError(
        f"a traced model answered with a {type(output).__name__}; expected tensors, or a tuple or dict of them"
    )


def joined(outputs: Sequence[Any]) -> Any:
    """The outputs of the parts of a batch as one."""
    first = outputs[0]
    if len(outputs) == 1:
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(list(outputs))
    if isinstance(first, Mapping):
        return {name: torch.cat([output[name] for output in outputs]) for name in first}
    return tuple(torch.cat(column) for column in zip(*outputs, strict=True))


def answers_of(output: Any, lengths: Sequence[int] | None, sequences: Sequence[int | str]) -> list[Any]:
    """Row by row what a batch of outputs holds, as lists of numbers; `sequences` are cut to the row's own length."""

    def rows(tensor: torch.Tensor, place: int | str) -> list[Any]:
        if lengths is None or place not in sequences:
            return list(tensor.tolist())
        return [row[:length] for row, length in zip(tensor.tolist(), lengths, strict=True)]

    found = mapped(output, rows)
    if isinstance(found, Mapping):
        return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    if isinstance(found, tuple):
        return [row[0] if len(row) == 1 else list(row) for row in zip(*found, strict=True)]
    return list(found)
