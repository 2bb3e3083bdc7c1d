"""DeepSpeed: a model that its inference engine runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torchd_workers.context import Context
from torchd_workers.handlers.optional_libraries import library


def create_checkpoints_json(model_path: str, checkpoints_json: str) -> None:
    """Writes the list of weights files under `model_path` that DeepSpeed loads from."""
    files = [str(file) for file in sorted(Path(model_path).rglob("*")) if file.suffix in (".bin", ".pt")]
    Path(checkpoints_json).write_text(json.dumps({"type": "ds_model", "checkpoints": files, "version": 1.0}))


def get_ds_engine(model: Any, ctx: Context) -> Any:
    """DeepSpeed's engine for the model, with the entries `deepspeed` and `handler` of model-config.yaml."""
    options = ctx.model_yaml_config.get("deepspeed")
    if not options:
        raise ValueError(f"model {ctx.model_name!r} has no entry 'deepspeed' in its model-config.yaml")
    engine = library("deepspeed", "get_ds_engine", "deepspeed")
    directory = ctx.system_properties["model_dir"]
    model_path = ctx.model_yaml_config["handler"]["model_path"]
    config = os.path.join(directory, options["config"]) if "config" in options else None
    if config is not None and not os.path.isfile(config):
        raise FileNotFoundError(f"deepspeed.config names {options['config']}, which the archive does not have")
    checkpoint = os.path.join(directory, options["checkpoint"]) if "checkpoint" in options else None
    if checkpoint is not None:
        create_checkpoints_json(model_path, checkpoint)
    return engine.init_inference(model, config=config, base_dir=model_path, checkpoint=checkpoint)
