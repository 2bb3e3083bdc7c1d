"""From a whole model to this rank's place in its pipeline."""

from __future__ import annotations

import torch

from torchd_workers.handlers.parallel.block_stage import BlockStage
from torchd_workers.handlers.parallel.blocks import layout_of
from torchd_workers.handlers.parallel.pipeline import Pipeline, Teller
from torchd_workers.handlers.parallel.ranks import Ranks


def pipeline_of(model: torch.nn.Module, ranks: Ranks, group: Teller | None, chunks: int = 1) -> Pipeline:
    """The pipeline of a transformers model. Every rank calls this with the same model, which may be on the meta device.

    The model keeps this rank's stage only, in place.
    """
    layout = layout_of(model, ranks.size)
    stage = BlockStage(model.eval(), layout, ranks.rank)
    return Pipeline(stage, ranks, group, chunks)
