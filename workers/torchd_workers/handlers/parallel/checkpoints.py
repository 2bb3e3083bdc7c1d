"""Loading a large Hugging Face model: an empty model, then the tensors that this process keeps, one at a time.

    with Checkpoint(folder) as checkpoint:
        model = empty_model(folder)
        fill(model, checkpoint, keep=keeps_prefixes("model.layers.0"), progress=report_of(context))

Peak anonymous memory stays under the largest shard and a half, plus what is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from torchd_workers.handlers.parallel.empty_models import empty_model
from torchd_workers.handlers.parallel.filling import (
    Cut,
    Filled,
    Keep,
    ShapesDiffer,
    WeightsMissing,
    fill,
    keeps_prefixes,
)
from torchd_workers.handlers.parallel.load_progress import Report, report_of
from torchd_workers.handlers.parallel.slices import slice_of_rank
from torchd_workers.handlers.parallel.weight_files import Checkpoint, CheckpointUnusable, Index
from torchd_workers.handlers.parallel.weight_names import WeightPlan, plan_for

__all__ = [
    "Checkpoint",
    "CheckpointUnusable",
    "Cut",
    "Filled",
    "Index",
    "Keep",
    "Report",
    "ShapesDiffer",
    "WeightPlan",
    "WeightsMissing",
    "empty_model",
    "fill",
    "keeps_prefixes",
    "load_model",
    "plan_for",
    "report_of",
    "slice_of_rank",
]


def load_model(
    folder: Path | str,
    cls: Any = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    progress: Report | None = None,
) -> Any:
    """The whole model of a checkpoint's folder on one device; `cls` and `dtype` as empty_model takes them."""
    model = empty_model(folder, cls, dtype)
    with Checkpoint(folder) as checkpoint:
        fill(model, checkpoint, device=device, progress=progress)
    return model
