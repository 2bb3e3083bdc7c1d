"""Keys and values that a pipeline keeps between the steps of one generation: each stage those of its own blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import Cache, DynamicCache


class StageCache(DynamicCache):
    """A stage's part of a cache. What a model asks about a block of another stage is answered from one of its own.

    Models ask their first block how much has been seen; all blocks of a kind have seen the same.
    """

    def __init__(self, config: Any, own: range) -> None:
        super().__init__(config=config)
        self._own = own

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens have been seen."""
        return int(super().get_seq_length(self._answering(layer_idx)))

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys for a mask."""
        sizes: tuple[int, int] = super().get_mask_sizes(query_length, self._answering(layer_idx))
        return sizes

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Where the first query stands."""
        return int(super().get_query_offset(self._answering(layer_idx)))

    def take_rows(self, rows: Any) -> None:
        """Keeps these rows of the batch, in this order (beam search)."""
        for index in self._own:
            self.layers[index].reorder_cache(rows)

    def _answering(self, index: int) -> int:
        if index in self._own:
            return index
        kind = type(self.layers[index]) if index < len(self.layers) else None
        return next((own for own in self._own if type(self.layers[own]) is kind), self._own[0])


class GeneratedSoFar(Cache):
    """What transformers' `generate` holds in place of a cache: how much the stages have seen, and how to reorder it."""

    def __init__(self, run: int, reorder: Callable[[torch.Tensor], None]) -> None:
        super().__init__(layers=[])
        self.run = run
        self.seen = 0
        self._reorder = reorder

    @property
    def is_compileable(self) -> bool:
        """No: the work is done elsewhere."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens the stages have seen."""
        return self.seen

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Lets every stage keep these rows."""
        self._reorder(beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Refused."""
        raise NotImplementedError("a pipeline's cache cannot be cropped (assisted generation); it can be reordered")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refused."""
        raise NotImplementedError("a pipeline's cache cannot be repeated; it can be reordered")

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Refused."""
        raise NotImplementedError("a pipeline's cache gives up no rows; it can be reordered")
