"""The processes of one worker as torch.distributed's group: who this one is, and its device.

The environment comes from the daemon (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Between ranks go
tensors, never pickled objects.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh

# For joining and for each collective. A rank that dies takes its worker down at once, so this ends only what hangs.
TIMEOUT_SECONDS = 300.0


class WrongRanks(RuntimeError):
    """The environment describes no group that this process can be a rank of."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among the ranks. A group of one has no collectives."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_leader(self) -> bool:
        """Whether this rank takes the requests and decides for all."""
        return self.rank == 0

    @property
    def mesh(self) -> DeviceMesh:
        """The ranks as one row of devices, for DTensor."""
        return DeviceMesh.from_group(_world(), self.device.type)

    def from_leader(self, tensor: torch.Tensor) -> torch.Tensor:
        """Makes the leader's tensor everyone's, in place; shape and type must be the same on every rank."""
        if self.size > 1:
            distributed.broadcast(tensor, src=0)
        return tensor

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replaces the tensor by the sum of all ranks' tensors."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def join_last(self, tensor: torch.Tensor) -> torch.Tensor:
        """All ranks' tensors one after another along the last dimension; they have the same shape."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts, dim=-1)


def join_ranks(
    environment: Mapping[str, str] = os.environ, timeout_seconds: float = TIMEOUT_SECONDS, gpu: int | str | None = None
) -> Ranks:
    """Joins the group that the environment names; asked again, gives the same. Without RANK: a group of one.

    `gpu` is the device of a process that is no rank; a rank takes the LOCAL_RANK-th of those it sees.
    """
    size = _number(environment, "WORLD_SIZE", 1)
    rank = _number(environment, "RANK", 0)
    if not 0 <= rank < size:
        raise WrongRanks(f"RANK is {rank} and WORLD_SIZE {size}; ranks count from 0 to {size - 1}")
    if size == 1:
        return Ranks(0, 1, _device(gpu))
    device = _device(_number(environment, "LOCAL_RANK", rank))
    if not distributed.is_initialized():
        _join(rank, size, device, environment, timeout_seconds)
    joined = (distributed.get_rank(), distributed.get_world_size())
    if joined != (rank, size):
        raise WrongRanks(f"this process is rank {joined[0]} of {joined[1]} already; it cannot be rank {rank} of {size}")
    return Ranks(rank, size, device)


def leave_ranks() -> None:
    """Leaves the group, if this process is in one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _join(rank: int, size: int, device: torch.device, environment: Mapping[str, str], timeout_seconds: float) -> None:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise WrongRanks(f"rank {rank} of {size} does not know where the others are: {' and '.join(missing)} not set")
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"tcp://{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_seconds),
        device_id=device if on_gpu else None,
    )
    # A process that ends inside the group is waited for by the backend's threads, and warned about.
    atexit.register(leave_ranks)


def _device(gpu: int | str | None) -> torch.device:
    if gpu is None or not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if int(gpu) >= count:
        raise WrongRanks(f"this process wants GPU {gpu} of those it sees, and it sees {count}; ranks share no GPU")
    return torch.device("cuda", int(gpu))


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name)
    if value is None:
        return default
    try:
        return int(value)
    except ValueError:
        raise WrongRanks(f"{name} is {value!r}; it must be a number") from None


def _world() -> distributed.ProcessGroup:
    group = distributed.group.WORLD
    if group is None:
        raise WrongRanks("this process has joined no group of ranks")
    return group
