"""A stage of a transformers model: the model's own forward, in which other stages' blocks do nothing.

Masks, positions and rotations are so computed on each rank by the model's own code from the inputs, which are small;
the hidden states alone go from rank to rank. The first own block gets what has arrived in place of what the forward
gives it, and the forward ends behind the last one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from torchd_workers.handlers.parallel.blocks import Layout, keep_stage
from torchd_workers.handlers.parallel.stages import Tensors


class _Leaves(Exception):
    """Carries the hidden states out of the forward behind the stage's last block."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__("the stage is through")
        self.hidden = hidden


class BlockStage:
    """One rank's blocks of a transformers model, with the embedding before the first and the head after the last."""

    wants_inputs = True

    def __init__(self, model: torch.nn.Module, layout: Layout, stage: int) -> None:
        """Takes the model apart: what other stages run is gone from it afterwards."""
        self._model: Any = model
        self._layout = layout
        self._own = layout.stages[stage]
        self._is_first = stage == 0
        self._is_last = stage == len(layout.stages) - 1
        self._arriving: torch.Tensor | None = None
        # The instance's forward may be replaced later (`generate` on the leader); the stage runs the model's own.
        self._forward = model.forward
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        first, last = keep_stage(model, layout, stage)
        if not self._is_first:
            first.register_forward_pre_hook(self._enter, with_kwargs=True)
        if not self._is_last:
            last.register_forward_hook(self._leave)

    def shape_key(self, inputs: Tensors) -> tuple[Any, ...]:
        """See Stage."""
        return tuple(inputs["input_ids"].shape)

    def borders(self, inputs: Tensors) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """See Stage."""
        hidden = torch.empty(
            *inputs["input_ids"].shape, self._layout.hidden_size, dtype=self._layout.dtype, device="meta"
        )
        return (() if self._is_first else (hidden,)), (hidden,)

    def new_cache(self) -> Any:
        """See Stage."""
        # transformers is there where a transformers model is; other stages do without it.
        from torchd_workers.handlers.parallel.stage_cache import StageCache

        return StageCache(self._model.config, self._own)

    def reorder(self, caches: list[Any], rows: torch.Tensor) -> None:
        """See Stage."""
        if len(caches) > 1:
            raise NotImplementedError("beam search over several microbatches; set pippy.chunks to 1")
        caches[0].take_rows(rows)

    def run(
        self, arriving: tuple[torch.Tensor, ...], inputs: Tensors, options: Mapping[str, Any], cache: Any
    ) -> tuple[torch.Tensor, ...] | dict[str, torch.Tensor]:
        """See Stage."""
        arguments = {**inputs, **options}
        if "use_cache" in self._takes:
            arguments["use_cache"] = cache is not None
        if cache is not None:
            arguments["past_key_values"] = cache
        self._arriving = arriving[0] if arriving else None
        try:
            output = self._forward(**arguments, return_dict=True)
        except _Leaves as leaving:
            return (leaving.hidden,)
        finally:
            self._arriving = None
        return {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}

    def _enter(self, block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (self._arriving, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._arriving}

    def _leave(self, block: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        raise _Leaves(output[0] if isinstance(output, tuple) else output)
