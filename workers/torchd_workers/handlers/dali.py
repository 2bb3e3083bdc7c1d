"""NVIDIA DALI pipelines that model-config.yaml names."""

from __future__ import annotations

import os
from typing import Any

from torchd_workers.context import Context
from torchd_workers.handlers.optional_libraries import library


def get_dali_pipeline(ctx: Context) -> Any:
    """The pipeline in the file `dali: {pipeline_file}` of the archive, for that entry's batch size, threads, device."""
    options = ctx.model_yaml_config.get("dali")
    if not options:
        raise ValueError(f"model {ctx.model_name!r} has no entry 'dali' in its model-config.yaml")
    if "pipeline_file" not in options:
        raise ValueError(
            f"model {ctx.model_name!r}: model-config.yaml names no dali.pipeline_file; serialize one and pack it"
        )
    path = os.path.join(ctx.system_properties["model_dir"], options["pipeline_file"])
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the archive has no DALI pipeline {options['pipeline_file']}")
    return library("nvidia.dali.pipeline", "this handler", "nvidia-dali-cuda120").Pipeline.deserialize(
        filename=path,
        batch_size=options["batch_size"],
        num_threads=options["num_threads"],
        prefetch_queue_depth=1,
        device_id=options["device_id"],
        seed=options["seed"],
    )
