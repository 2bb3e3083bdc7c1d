"""The next tokens of texts from a model that is cut into a pipeline, for `generation.write` on the leader."""

from __future__ import annotations

import torch

from torchd_workers.handlers.parallel.pipeline import Pipeline


class PipelinedTokens:
    """Reads each prompt once and then one token of each text for a step; every stage keeps what its blocks have read.

    The leader alone calls `write`, as a group of one: `Ranks(0, 1, device)`. Not to ask for more cancels the rest.
    """

    def __init__(
        self, pipeline: Pipeline, takes: frozenset[str] = frozenset({"position_ids", "logits_to_keep"})
    ) -> None:
        """`takes`: which of these two the model's forward has."""
        self._pipeline = pipeline
        self._takes = takes
        self._run: int | None = None
        self._mask = torch.empty(0)

    def first(self, prompts: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See generation.NextTokens."""
        self._run, self._mask = self._pipeline.new_run(), mask
        return self._read(prompts, (mask.cumsum(dim=-1) - 1).clamp(min=0))

    def next(self, tokens: torch.Tensor) -> torch.Tensor:
        """See generation.NextTokens."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=-1)
        return self._read(tokens.unsqueeze(-1), self._mask.sum(dim=-1, keepdim=True) - 1)

    def close(self) -> None:
        """The texts are written, or nobody waits for them: the stages may forget what they have read."""
        if self._run is not None:
            self._pipeline.end_run(self._run)
            self._run = None

    def _read(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": tokens, "attention_mask": self._mask}
        if "position_ids" in self._takes:
            inputs["position_ids"] = positions
        options = {"logits_to_keep": 1} if "logits_to_keep" in self._takes else {}
        return self._pipeline.step(inputs, options, self._run)["logits"][:, -1]
