"""From a whole model to this rank's place in its pipeline, and to what a handler calls in place of the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from torchd_workers.handlers.parallel.block_stage import BlockStage
from torchd_workers.handlers.parallel.blocks import CannotCut, Layout, layout_of
from torchd_workers.handlers.parallel.checkpoints import Checkpoint, Report, empty_model, fill, plan_for
from torchd_workers.handlers.parallel.graph_stage import GraphStage, unnamed
from torchd_workers.handlers.parallel.pipeline import Pipeline, Teller
from torchd_workers.handlers.parallel.pipelined_forward import PipelinedForward
from torchd_workers.handlers.parallel.ranks import Ranks


def pipeline_of(
    model: torch.nn.Module, ranks: Ranks, group: Teller | None, chunks: int = 1, input_names: Sequence[str] = ()
) -> Pipeline:
    """The pipeline of a model, on every rank. transformers models are cut at their blocks, others along their graph.

    Every rank gives the same model; a transformers model may be on the meta device. It keeps this rank's stage only, in
    place, and that is moved to the rank's device if it has values. `input_names` are for models cut along their graph.
    """
    model.eval()
    if _is_transformers(model):
        return Pipeline(_block_stage(model, layout_of(model, ranks.size), ranks), ranks, group, chunks)
    stage = GraphStage(model, ranks.size, ranks.rank, input_names)
    _move(stage.module, ranks.device)
    return Pipeline(stage, ranks, group, chunks)


def run_as_pipeline(model: Any, ranks: Ranks, group: Teller | None, chunks: int = 1) -> Any:
    """Cuts a transformers model and replaces its forward: on the leader the model, `generate` too, runs all stages."""
    if not _is_transformers(model):
        raise CannotCut(model, "it is no transformers model; for another leave pippy.model_type empty")
    layout = layout_of(model.eval(), ranks.size)
    pipeline = Pipeline(_block_stage(model, layout, ranks), ranks, group, chunks)
    model.forward = PipelinedForward(pipeline, model, layout.output).replacement()
    return model


def load_as_pipeline(
    folder: Path, cls: Any, dtype: torch.dtype, ranks: Ranks, group: Teller | None, chunks: int, progress: Report | None
) -> Any:
    """The same of a model that is a checkpoint yet: this rank reads its stage only."""
    model = empty_model(folder, cls, dtype)
    with Checkpoint(folder) as checkpoint:
        plan = plan_for(model, checkpoint)  # of the whole: afterwards most of its names are gone
        run_as_pipeline(model, ranks, group, chunks)
        fill(model, checkpoint, device=ranks.device, progress=progress, plan=plan)
    return model


class PipelinedModule:
    """What is called in place of a module that is cut along its graph."""

    def __init__(self, pipeline: Pipeline, input_names: Sequence[str]) -> None:
        self.pipeline = pipeline
        self.input_names = list(input_names)

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        """The module's output, on the leader."""
        given = {**dict(zip(self.input_names, args, strict=False)), **kwargs}
        if len(args) > len(self.input_names) or set(given) != set(self.input_names):
            raise TypeError(
                f"the pipeline takes {', '.join(self.input_names)}; it got {len(args)} and {', '.join(kwargs)}"
            )
        return unnamed(self.pipeline.step(given))


def _is_transformers(model: Any) -> bool:
    return hasattr(model, "config") and hasattr(model, "get_input_embeddings")


def _block_stage(model: torch.nn.Module, layout: Layout, ranks: Ranks) -> BlockStage:
    stage = BlockStage(model, layout, ranks.rank)
    _move(model, ranks.device)
    return stage


def _move(kept: torch.nn.Module, device: torch.device) -> None:
    if not any(parameter.is_meta for parameter in kept.parameters()):
        kept.to(device)
