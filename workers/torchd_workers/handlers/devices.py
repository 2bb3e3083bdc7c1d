"""The device a worker's model runs on, by TorchServe's order: CUDA, XPU, MPS, XLA, CPU."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

import torch


def device_for(gpu: int | str | None) -> torch.device:
    """The device for a worker that was lent this GPU, or none."""
    if gpu is not None:
        lent = _lent(gpu)
        if lent is not None:
            return lent
    return _xla_device() if importlib.util.find_spec("torch_xla") else torch.device("cpu")


def _lent(gpu: int | str) -> torch.device | None:
    if torch.cuda.is_available():
        return torch.device(f"cuda:{gpu}")
    # Intel's GPUs only when asked for, as TorchServe does it.
    if os.environ.get("TS_IPEX_GPU_ENABLE", "false") == "true" and torch.xpu.is_available():
        return torch.device(f"xpu:{gpu}")
    return torch.device("mps") if torch.backends.mps.is_available() else None


def _xla_device() -> Any:
    return importlib.import_module("torch_xla.core.xla_model").xla_device()
