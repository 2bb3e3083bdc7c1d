"""What the model does in a loop, without a server around it: the ceiling. Runs in a process of its own."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from torchd_server.accelerators.cpu import usable_cores

WARM_UP_CALLS = 3
LEAST_CALLS = 5


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Items per second by the size of the batch, and the device they were computed on."""

    device: str
    throughput: dict[int, float]


def measure(source: Path, payload: bytes, batch_sizes: Sequence[int], seconds: float) -> Ceiling:
    """Loads the model as a worker would, by its handler, and calls it with batches that are on the device already.

    A call ends when the answers are in main memory, as a server needs them.
    """
    import torch

    torch.set_num_threads(usable_cores())  # what the daemon gives a worker that is alone
    handler = _handler(source)
    throughput = {}
    for batch_size in batch_sizes:
        # Each size is compiled for itself: the best that can be had.
        torch.compiler.reset()
        inputs = handler.preprocess([{"data": payload}] * batch_size).to(handler.device)
        throughput[batch_size] = _loop(handler, inputs, batch_size, seconds)
    return Ceiling(handler.describe_handle()["name"], throughput)


def _loop(handler: Any, inputs: Any, batch_size: int, seconds: float) -> float:
    import torch

    with torch.inference_mode():
        for _ in range(WARM_UP_CALLS):
            handler.postprocess(handler.model(inputs))
        calls, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds or calls < LEAST_CALLS:
            handler.postprocess(handler.model(inputs))
            calls += 1
    return calls * batch_size / elapsed


def _handler(source: Path) -> Any:
    """The handler, initialized on the device that the configuration names."""
    from torchd_workers.context import Context
    from torchd_workers.loader import SHIM

    config = yaml.safe_load((source / "model-config.yaml").read_text())
    manifest = {"model": {"modelName": source.name, "handler": "handler.py", "modelFile": "model.py"}}
    gpu = 0 if config["deviceType"] == "gpu" else None
    sys.path[:0] = [SHIM, str(source)]
    made = importlib.import_module("handler").BytesHandler()
    made.initialize(Context(source.name, str(source), manifest, 1, gpu, model_yaml_config=config))
    return made


def has_cuda() -> bool:
    """Whether torch can use a GPU here."""
    import torch

    return torch.cuda.is_available()
