"""torch.profiler around the steps of a handler, where ENABLE_TORCH_PROFILER asks for it."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, tensorboard_trace_handler

logger = logging.getLogger(__name__)

# TorchServe's place, where its users look.
TRACES = "/tmp/pytorch_profiler"


def is_profiler_enabled() -> bool:
    """Whether the environment asks for profiles."""
    return bool(os.environ.get("ENABLE_TORCH_PROFILER"))


def profiler_for(arguments: dict[str, Any], model_name: str) -> profile:
    """A profiler with the handler's own arguments; what they leave out is CPU, CUDA, shapes, a trace per batch."""
    if not arguments:
        cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        arguments.update(activities=[ProfilerActivity.CPU, *cuda], record_shapes=True)
    if "on_trace_ready" not in arguments:
        folder = os.path.join(TRACES, model_name)
        logger.info("chrome traces go to %s", folder)
        arguments["on_trace_ready"] = tensorboard_trace_handler(folder)
    return profile(**arguments)
