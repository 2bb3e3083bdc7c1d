"""Which part of a weight a rank keeps, where several ranks share it along one dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torchd_workers.handlers.parallel.weight_files import Index


def slice_of_rank(shape: Sequence[int], dim: int, rank: int, ranks: int) -> Index:
    """This rank's part along `dim`: 0 for a column-wise split of a Linear's weight and its bias, 1 for a row-wise one.

    Parts are torch.chunk's and DTensor's: all as large as the first, the last ones smaller or empty.
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"rank {rank} is none of {ranks} ranks")
    if not -len(shape) <= dim < len(shape):
        raise ValueError(f"a tensor of shape {list(shape)} has no dimension {dim} to be split along")
    dim %= len(shape)
    size = shape[dim]
    part = -(-size // ranks)
    return (*(slice(None),) * dim, slice(min(rank * part, size), min((rank + 1) * part, size)))


def is_distributed(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor, of which a rank holds a part; asked without importing torch.distributed."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def local_slice(tensor: Any) -> Index:
    """The part of a DTensor that this rank holds."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # only where ranks share weights

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))


def distributed_like(local: torch.Tensor, tensor: Any) -> torch.Tensor:
    """A DTensor like another, of which this rank holds `local`."""
    from torch.distributed.tensor import DTensor  # only where ranks share weights

    made: torch.Tensor = DTensor.from_local(
        local, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
    return made
