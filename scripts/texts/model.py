"""A BERT as large as sizes.json beside it says; transformers' default is BERT-base."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification


class Scores(torch.nn.Module):
    """Two scores for each row of token numbers."""

    def __init__(self) -> None:
        super().__init__()
        sizes = json.loads(Path(__file__).with_name("sizes.json").read_text())
        self.net = BertForSequenceClassification(BertConfig(**sizes))

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The scores; `mask` has 0 where a row is padded."""
        scores: torch.Tensor = self.net(input_ids=tokens, attention_mask=mask).logits
        return scores
