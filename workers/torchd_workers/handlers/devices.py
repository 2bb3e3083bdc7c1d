"""The device a worker's model runs on, by TorchServe's order: CUDA, XPU, MPS, XLA, CPU; and how tensors get there."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

logger = logging.getLogger(__name__)

Question = Callable[[], bool]


class NoSuchDevice(RuntimeError):
    """The worker was lent a device that its torch does not see."""


@dataclass(frozen=True, slots=True)
class Libraries:
    """What this process can compute with, asked when it matters: a question may load a driver."""

    cuda: Question = torch.cuda.is_available
    cuda_devices: Callable[[], int] = torch.cuda.device_count
    xpu: Question = torch.xpu.is_available
    mps: Question = torch.backends.mps.is_available
    xla: Question = lambda: importlib.util.find_spec("torch_xla") is not None


def device_for(
    gpu: int | str | None, libraries: Libraries | None = None, environment: Mapping[str, str] = os.environ
) -> torch.device:
    """The device for a worker that was lent this GPU, counted among those it sees, or none."""
    libraries = libraries or Libraries()
    if gpu is not None:
        lent = _lent(gpu, libraries, environment)
        if lent is not None:
            return lent
        logger.warning("GPU %s was lent to this worker, but torch %s can use none", gpu, torch.__version__)
    return _xla_device() if libraries.xla() else torch.device("cpu")


def enter(device: torch.device) -> None:
    """Makes it the current device, so that what names none (`.cuda()`, a compiled program) lands there too."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif device.type == "xpu":
        torch.xpu.set_device(device)


def moved(value: Any, device: torch.device | None, pin_memory: bool = True) -> Any:
    """A tensor, or a batch of a tokenizer's, on the device.

    From main memory to a CUDA device by way of pinned memory: the copy runs while Python goes on, in order with the
    kernels that read it.
    """
    if pin_memory and device is not None and device.type == "cuda" and _is_pageable(value):
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def _is_pageable(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.layout == torch.strided


def _lent(gpu: int | str, libraries: Libraries, environment: Mapping[str, str]) -> torch.device | None:
    if libraries.cuda():
        seen = libraries.cuda_devices()
        if int(gpu) >= seen:
            visible = environment.get("CUDA_VISIBLE_DEVICES", "not set")
            raise NoSuchDevice(f"this worker was lent GPU {gpu}, and sees {seen} (CUDA_VISIBLE_DEVICES: {visible})")
        return torch.device(f"cuda:{gpu}")
    # Intel's GPUs only when asked for, as TorchServe does it.
    if environment.get("TS_IPEX_GPU_ENABLE", "false") == "true" and libraries.xpu():
        return torch.device(f"xpu:{gpu}")
    return torch.device("mps") if libraries.mps() else None


def _xla_device() -> Any:
    return importlib.import_module("torch_xla.core.xla_model").xla_device()
