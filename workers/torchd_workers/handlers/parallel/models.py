"""A Hugging Face model as the handler runs it, however it is split: whole, by tensor parallelism, in stages."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from torchd_workers.context import Context
from torchd_workers.handlers.optional_libraries import library
from torchd_workers.handlers.parallel.checkpoints import Checkpoint, empty_model, fill, plan_for, report_of
from torchd_workers.handlers.parallel.cutting import pipeline_of
from torchd_workers.handlers.parallel.generation import Read
from torchd_workers.handlers.parallel.pipeline import Pipeline
from torchd_workers.handlers.parallel.ranks import Ranks
from torchd_workers.handlers.parallel.tensor_parallel import settle, split


class RunningModel(Protocol):
    """What the tasks ask of a model. Where the ranks are called alike, all of them must ask."""

    config: Any
    # Those that the leader must tell what it chooses: none but itself where it alone is called.
    ranks: Ranks

    def run(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The outputs, by transformers' names, for tensors on the model's device."""

    def reading(self) -> AbstractContextManager[Read]:
        """Gives the way to read some texts token by token."""


class Alike:
    """A model that every rank runs with the same inputs: split by tensor parallelism, or whole on the only rank."""

    def __init__(self, model: Any, ranks: Ranks) -> None:
        self.config = model.config
        self.ranks = ranks
        self._model = model
        self._takes = inspect.signature(model.forward).parameters

    def run(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """See RunningModel."""
        with torch.inference_mode():
            outputs: Mapping[str, torch.Tensor] = self._model(**inputs, return_dict=True)
        return outputs

    @contextmanager
    def reading(self) -> Iterator[Read]:
        """See RunningModel."""
        cache = library("transformers", "generating text", "'torchd[torch]'").DynamicCache()

        def read(tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            inputs = _of_interest(self._takes, tokens, mask, positions)
            output = self._model(**inputs, **_options(self._takes), past_key_values=cache, use_cache=True)
            logits: torch.Tensor = output.logits[:, -1]
            return logits

        yield read


class InStages:
    """A model in a pipeline. The leader alone is called; the other ranks run their stages when it says so."""

    def __init__(self, model: Any, pipeline: Pipeline) -> None:
        self.config = model.config
        self.ranks = replace(pipeline.ranks, rank=0, size=1)
        self._pipeline = pipeline
        self._takes = inspect.signature(model.forward).parameters

    def run(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """See RunningModel."""
        return self._pipeline.step(inputs)

    @contextmanager
    def reading(self) -> Iterator[Read]:
        """See RunningModel."""
        run = self._pipeline.new_run()

        def read(tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            inputs = _of_interest(self._takes, tokens, mask, positions)
            return self._pipeline.step(inputs, _options(self._takes), run)["logits"][:, -1]

        try:
            yield read
        finally:
            self._pipeline.end_run(run)


def _of_interest(
    takes: Mapping[str, Any], tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
) -> dict[str, torch.Tensor]:
    inputs = {"input_ids": tokens, "attention_mask": mask}
    return {**inputs, "position_ids": positions} if "position_ids" in takes else inputs


def _options(takes: Mapping[str, Any]) -> dict[str, int]:
    # The last token's logits only: those of a long prompt would be the largest tensor of all.
    return {"logits_to_keep": 1} if "logits_to_keep" in takes else {}


def load_alike(
    folder: Path, cls: Any, dtype: torch.dtype | None, ranks: Ranks, context: Context, options: Mapping[str, Any]
) -> RunningModel:
    """The checkpoint's model, of which this rank has read and keeps its part only."""
    model = empty_model(folder, cls, dtype)
    split(model, ranks)
    with Checkpoint(folder) as checkpoint:
        fill(model, checkpoint, device=ranks.device, progress=report_of(context))
    settle(model)
    return Alike(model, ranks)


def load_in_stages(
    folder: Path, cls: Any, dtype: torch.dtype | None, ranks: Ranks, context: Context, options: Mapping[str, Any]
) -> RunningModel:
    """The checkpoint's model, of which this rank has read and keeps its stage only."""
    model = empty_model(folder, cls, dtype)
    with Checkpoint(folder) as checkpoint:
        plan = plan_for(model, checkpoint)
        pipeline = pipeline_of(model, ranks, context.group, options.get("chunks", 1))
        own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        own |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
        keep = own.__contains__
        fill(model, checkpoint, keep=keep, plan=plan, device=ranks.device, progress=report_of(context))
    return InStages(model, pipeline)
