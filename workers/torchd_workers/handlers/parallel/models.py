"""A Hugging Face model as the handler runs it, however it is split: whole, by tensor parallelism, in stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from torchd_workers.context import Context
from torchd_workers.handlers.parallel.checkpoints import Checkpoint, empty_model, fill, report_of
from torchd_workers.handlers.parallel.generation import Cached, NextTokens
from torchd_workers.handlers.parallel.ranks import Ranks
from torchd_workers.handlers.parallel.tensor_parallel import settle, split


class RunningModel(Protocol):
    """What the tasks ask of a model. Where the ranks are called alike, all of them must ask."""

    config: Any
    # Those that must know what the leader chooses: one, where only the leader is called.
    ranks: Ranks

    def run(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The outputs, by transformers' names, for tensors on the model's device."""

    def reading(self) -> Any:
        """A context manager that gives the way to the next tokens of some texts (NextTokens)."""


class Alike:
    """A model that every rank runs with the same inputs: split by tensor parallelism, or whole on the only rank."""

    def __init__(self, model: Any, ranks: Ranks) -> None:
        self.config = model.config
        self.ranks = ranks
        self._model = model

    def run(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """See RunningModel."""
        with torch.inference_mode():
            outputs: Mapping[str, torch.Tensor] = self._model(**inputs, return_dict=True)
        return outputs

    @contextmanager
    def reading(self) -> Iterator[NextTokens]:
        """See RunningModel."""
        yield Cached(self._model)


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
