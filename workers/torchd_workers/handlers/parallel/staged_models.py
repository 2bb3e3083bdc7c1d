"""A Hugging Face model in stages as the handler runs it: the leader is called alone, and the others run their stage."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from torchd_workers.context import Context
from torchd_workers.handlers.parallel.block_stage import BlockStage
from torchd_workers.handlers.parallel.blocks import layout_of
from torchd_workers.handlers.parallel.checkpoints import Checkpoint, empty_model, fill, plan_for, report_of
from torchd_workers.handlers.parallel.generation import NextTokens
from torchd_workers.handlers.parallel.models import RunningModel
from torchd_workers.handlers.parallel.pipeline import Pipeline, chunks_of
from torchd_workers.handlers.parallel.pipelined_tokens import PipelinedTokens
from torchd_workers.handlers.parallel.ranks import Ranks


class InStages:
    """A model whose stages the leader's pipeline runs."""

    def __init__(self, model: Any, pipeline: Pipeline) -> None:
        self.config = model.config
        # Only the leader chooses tokens; to `write` it is alone.
        self.ranks = Ranks(0, 1, pipeline.ranks.device)
        self._pipeline = pipeline
        self._takes = frozenset(inspect.signature(model.forward).parameters)

    def run(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """See RunningModel."""
        return self._pipeline.step(inputs)

    @contextmanager
    def reading(self) -> Iterator[NextTokens]:
        """See RunningModel."""
        tokens = PipelinedTokens(self._pipeline, self._takes)
        try:
            yield tokens
        finally:
            tokens.close()


def load_in_stages(
    folder: Path, cls: Any, dtype: torch.dtype | None, ranks: Ranks, context: Context, options: Mapping[str, Any]
) -> RunningModel:
    """The checkpoint's model, of which this rank reads and keeps its stage only; batches are cut by `pippy.chunks`."""
    model = empty_model(folder, cls, dtype)
    with Checkpoint(folder) as checkpoint:
        plan = plan_for(model, checkpoint)  # of the whole: afterwards most of its names are gone
        stage = BlockStage(model, layout_of(model, ranks.size), ranks.rank)
        fill(model, checkpoint, device=ranks.device, progress=report_of(context), plan=plan)
    return InStages(model, Pipeline(stage, ranks, context.group, chunks_of(context)))
