"""One stage of a model: what a rank runs of it, whatever kind of model it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

Tensors = Mapping[str, torch.Tensor]


class Stage(Protocol):
    """A rank's part of a model."""

    # Whether every stage needs the inputs themselves, and not only how they look.
    wants_inputs: bool

    def shape_key(self, inputs: Tensors) -> tuple[Any, ...]:
        """What of the inputs decides the shapes that go between stages; inputs may be on the meta device."""

    def borders(self, inputs: Tensors) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """What comes in and what goes out for such inputs, on the meta device."""

    def new_cache(self) -> Any:
        """An empty cache for one microbatch of a generation."""

    def reorder(self, caches: list[Any], rows: torch.Tensor) -> None:
        """Keeps these rows of the whole batch in the caches of its microbatches."""

    def run(
        self, arriving: tuple[torch.Tensor, ...], inputs: Tensors, options: Mapping[str, Any], cache: Any
    ) -> tuple[torch.Tensor, ...] | dict[str, torch.Tensor]:
        """What goes on to the next stage; in the last one the model's outputs by name."""
