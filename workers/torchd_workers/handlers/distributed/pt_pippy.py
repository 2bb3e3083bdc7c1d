"""PiPPy: a model split over processes. The library is retired; who still has it installed can use it."""

from __future__ import annotations

import inspect
import logging
import os
from typing import Any

import torch

from torchd_workers.context import Context
from torchd_workers.handlers.optional_libraries import library

logger = logging.getLogger(__name__)

_WHAT = "splitting a model into a pipeline"


def initialize_rpc_workers(local_rank: int, world_size: int, ctx: Context) -> None:
    """Joins the group of processes, with `pippy: {rpc_timeout, num_worker_threads}` of model-config.yaml."""
    library("pippy", _WHAT, "torchpippy")
    options = _entry(ctx, "pippy", "rpc_timeout", "num_worker_threads")
    rpc: Any = torch.distributed.rpc
    backend = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=options["num_worker_threads"], rpc_timeout=options["rpc_timeout"]
    )
    devices = torch.cuda.device_count()
    for rank in range(world_size):
        backend.set_device_map(f"worker{rank}", {local_rank % devices: rank % devices})
    logger.info("rank %d joins %d others", local_rank, world_size - 1)
    rpc.init_rpc(f"worker{local_rank}", rank=local_rank, world_size=world_size, rpc_backend_options=backend)


def get_pipeline_driver(model: Any, world_size: int, ctx: Context) -> Any:
    """The model split into `world_size` stages, with the entries `pippy` and `handler` of model-config.yaml."""
    pippy = library("pippy", _WHAT, "torchpippy")
    options = _entry(ctx, "pippy", "input_names", "model_type")
    handler = _entry(ctx, "handler", "model_path")
    index = handler.get("index_filename")
    index_path = os.path.join(handler["model_path"], index) if index else None
    if index_path is not None and not os.path.isfile(index_path):
        raise FileNotFoundError(f"handler.index_filename names {index_path}, which is not there")
    is_huggingface = options["model_type"] == "HF"
    hf = library("pippy.hf", _WHAT, "torchpippy") if is_huggingface else None
    model.eval()
    parameters = inspect.signature(model.forward).parameters.values()
    fixed = {
        parameter.name: parameter.default for parameter in parameters if parameter.name not in options["input_names"]
    }
    if is_huggingface and "bloom" in str(type(model)):
        fixed.setdefault("deprecated_arguments", {})
    driver, _ = pippy.all_compile(
        model,
        num_ranks=world_size,
        num_chunks=options.get("chunks", 1),
        schedule="FillDrain",
        split_policy=pippy.split_into_equal_size(world_size),
        tracer=hf.PiPPyHFTracer() if hf else None,
        concrete_args=fixed,
        index_filename=index_path,
        checkpoint_prefix=None,
    )
    if hf is None:
        return driver
    hf.inject_pipeline_forward(model, driver)
    return model


def _entry(ctx: Context, name: str, *keys: str) -> dict[str, Any]:
    """An entry of model-config.yaml that must have these keys."""
    entry: dict[str, Any] = ctx.model_yaml_config.get(name) or {}
    missing = [f"{name}.{key}" for key in keys if key not in entry]
    if missing:
        raise ValueError(f"model-config.yaml lacks {', '.join(missing)}")
    return entry
