"""DeepSpeed: a model that its inference engine runs, or without it one that our own tensor parallelism splits."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from torchd_workers.context import Context
from torchd_workers.handlers.optional_libraries import LibraryMissing, library
from torchd_workers.handlers.parallel.plans import CannotSplit
from torchd_workers.handlers.parallel.ranks import Ranks, join_ranks
from torchd_workers.handlers.parallel.tensor_parallel import settle, split

logger = logging.getLogger(__name__)

_EXTRA = "'torchd[deepspeed]'"


class WrongDeepSpeedConfig(ValueError):
    """The file that `deepspeed.config` names does not say what DeepSpeed could use here."""


@dataclass(frozen=True, slots=True)
class SplitEngine:
    """Stands where DeepSpeed's engine would: `module` is the model, split without DeepSpeed."""

    module: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward."""
        return self.module(*args, **kwargs)


def create_checkpoints_json(model_path: str, checkpoints_json: str) -> None:
    """Writes the list of weights files under `model_path` that DeepSpeed loads from."""
    files = [str(file) for file in sorted(Path(model_path).rglob("*")) if file.suffix in (".bin", ".pt")]
    Path(checkpoints_json).write_text(json.dumps({"type": "ds_model", "checkpoints": files, "version": 1.0}))


def get_ds_engine(model: Any, ctx: Context) -> Any:
    """The model on all ranks, its `module`, with the entries `deepspeed` and `handler` of model-config.yaml.

    DeepSpeed's engine where it is installed; else the model is split without it, if that is possible.
    """
    options = ctx.model_yaml_config.get("deepspeed")
    if not options:
        raise ValueError(f"model {ctx.model_name!r} has no entry 'deepspeed' in its model-config.yaml")
    directory = ctx.system_properties["model_dir"]
    said = _said(directory, options.get("config"))
    ranks = join_ranks(gpu=ctx.system_properties.get("gpu_id"))
    asked = (said.get("tensor_parallel") or {}).get("tp_size", ranks.size)
    if asked != ranks.size:
        logger.warning(
            "%s says tp_size %s, and this worker has %d ranks (torchrun.nproc-per-node): the model is split over %d",
            options["config"], asked, ranks.size, ranks.size,
        )  # fmt: skip
        said["tensor_parallel"] = {**said["tensor_parallel"], "tp_size": ranks.size}
    if find_spec("deepspeed") is None:
        return _split_without(model, said, ranks)
    return _engine(model, ctx, directory, options, said, ranks)


def _engine(
    model: Any, ctx: Context, directory: str, options: dict[str, Any], said: dict[str, Any], ranks: Ranks
) -> Any:
    if ranks.device.type == "cpu":
        _prepare_for_cpu(said, ranks)
    # A name of the hub, or no path where the handler has loaded the weights itself.
    model_path = (ctx.model_yaml_config.get("handler") or {}).get("model_path", "")
    checkpoint = os.path.join(directory, options["checkpoint"]) if "checkpoint" in options else None
    if checkpoint is not None:
        create_checkpoints_json(model_path, checkpoint)
    deepspeed = library("deepspeed", "get_ds_engine", _EXTRA)
    return deepspeed.init_inference(model, config=said, base_dir=model_path, checkpoint=checkpoint)


def _prepare_for_cpu(said: dict[str, Any], ranks: Ranks) -> None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed's sum in shared memory crashes where its own launcher has not said how many ranks the host has.
    os.environ.setdefault("LOCAL_SIZE", str(ranks.size))
    if said.get("replace_with_kernel_inject"):
        logger.warning("replace_with_kernel_inject is for GPUs: on this CPU the model keeps its own layers")
        said["replace_with_kernel_inject"] = False


def _split_without(model: Any, said: dict[str, Any], ranks: Ranks) -> SplitEngine:
    logger.warning(
        "DeepSpeed is not installed (pip install %s): torchd splits the model over %d ranks itself, "
        "without DeepSpeed's kernels",
        _EXTRA, ranks.size,
    )  # fmt: skip
    try:
        split(model, ranks)
    except CannotSplit as error:
        raise LibraryMissing(
            f"{type(model).__name__}, which torchd cannot split itself,", "deepspeed", _EXTRA
        ) from error
    settle(model)
    return SplitEngine(model.to(ranks.device, _dtype(said)).eval())


def _dtype(said: dict[str, Any]) -> torch.dtype | None:
    """The type that the configuration names: "torch.float16", "fp16"; None leaves the model's own."""
    name = str(said.get("dtype", "")).removeprefix("torch.")
    if not name:
        return None
    found = {"fp32": torch.float32, "fp16": torch.float16, "half": torch.float16, "bf16": torch.bfloat16}.get(name)
    found = found or getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise WrongDeepSpeedConfig(
            f"the DeepSpeed configuration has dtype {said['dtype']!r}, which only DeepSpeed knows"
        )
    return found


def _said(directory: str, name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    path = os.path.join(directory, name)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"deepspeed.config names {name}, which the archive does not have")
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WrongDeepSpeedConfig(f"{name} is no JSON: {error}") from error
    if not isinstance(said, dict):
        raise WrongDeepSpeedConfig(f"{name} must be an object, and is {type(said).__name__}")
    return said
