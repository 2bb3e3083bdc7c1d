"""The names that handlers written for PiPPy import, on torch.distributed.pipelining, where PiPPy went.

There is no RPC between the ranks any more and no pickled object: the leader announces a step, tensors go from stage to
stage. The entry `pippy` of model-config.yaml keeps its meaning, as far as there is something left to set.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from torchd_workers.context import Context
from torchd_workers.handlers.parallel.checkpoints import report_of
from torchd_workers.handlers.parallel.cutting import PipelinedModule, load_as_pipeline, pipeline_of, run_as_pipeline
from torchd_workers.handlers.parallel.model_path import model_path
from torchd_workers.handlers.parallel.pipeline import chunks_of
from torchd_workers.handlers.parallel.ranks import join_ranks

logger = logging.getLogger(__name__)


def initialize_rpc_workers(local_rank: int, world_size: int, ctx: Context) -> None:
    """Joins the group of ranks; what a step waits for another rank at most is `pippy.rpc_timeout`, in seconds.

    `pippy.num_worker_threads` was the number of RPC's threads. It must still be there, and says nothing now.
    """
    options = _entry(ctx, "pippy", "rpc_timeout", "num_worker_threads")
    seconds = _number(options, "rpc_timeout")
    _number(options, "num_worker_threads")
    ranks = join_ranks(timeout_seconds=seconds)
    if ranks.size != world_size:
        raise ValueError(f"the handler asks for {world_size} ranks and its worker has {ranks.size}")
    logger.info("rank %d of %d joined the others", local_rank, world_size)


def get_pipeline_driver(model: Any, world_size: int, ctx: Context) -> Any:
    """The model cut into `world_size` stages; called on every rank, and what it returns runs on rank 0.

    With `pippy.model_type: HF` that is the model itself, `generate` included, else something that takes
    `pippy.input_names`. A transformers model on the meta device is read from `handler.model_path`, each rank its stage;
    what comes back is then another object than was given.
    """
    options = _entry(ctx, "pippy", "input_names", "model_type")
    _check_index(ctx)
    ranks = join_ranks()
    if ranks.size != world_size:
        raise ValueError(f"the handler asks for {world_size} stages and its worker has {ranks.size} ranks")
    chunks = chunks_of(ctx)
    group = ctx.group if ranks.size > 1 else None
    if options["model_type"] == "HF":
        if any(parameter.is_meta for parameter in model.parameters()):
            _entry(ctx, "handler", "model_path")
            folder = model_path(ctx)
            return load_as_pipeline(folder, type(model), model.dtype, ranks, group, chunks, report_of(ctx))
        return run_as_pipeline(model, ranks, group, chunks)
    names = _names(options["input_names"])
    return PipelinedModule(pipeline_of(model, ranks, group, chunks, names), names)


def _check_index(ctx: Context) -> None:
    # TorchServe wants handler.model_path at any rate; its own documentation leaves it out.
    if not (ctx.model_yaml_config.get("handler") or {}).get("index_filename"):
        return
    handler = _entry(ctx, "handler", "model_path")
    path = os.path.join(handler["model_path"], handler["index_filename"])
    if not os.path.isfile(path):
        raise FileNotFoundError(f"handler.index_filename names {path}, which is not there")


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise ValueError(f"pippy.input_names is {value!r}; it must be a list of the names of the model's inputs")
    return value


def _number(options: dict[str, Any], key: str) -> float:
    value = options[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ValueError(f"pippy.{key} is {value!r}; it must be a number above 0")
    return value


def _entry(ctx: Context, name: str, *keys: str) -> dict[str, Any]:
    """An entry of model-config.yaml that must have these keys."""
    entry: dict[str, Any] = ctx.model_yaml_config.get(name) or {}
    missing = [f"{name}.{key}" for key in keys if key not in entry]
    if missing:
        raise ValueError(f"model-config.yaml lacks {', '.join(missing)}")
    return entry
