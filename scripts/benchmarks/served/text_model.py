"""A BERT that scores texts; text_sizes.json beside it says how large it is."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification


class TextModel(torch.nn.Module):
    """Two scores for each row of token numbers. Random weights, the same at every start until others are loaded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = json.loads(Path(__file__).with_name("text_sizes.json").read_text())
        self.net = BertForSequenceClassification(BertConfig(**sizes))

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The scores; `mask` has 0 where a row is padded."""
        scores: torch.Tensor = self.net(input_ids=tokens, attention_mask=mask).logits
        return scores
