"""A BERT with random weights: token numbers in, the scores of two classes out."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification


class Bert(torch.nn.Module):
    """As large as sizes.json beside this file says; transformers' default is BERT-base."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = json.loads(Path(__file__).with_name("sizes.json").read_text())
        self.net = BertForSequenceClassification(BertConfig(**sizes))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """A row of scores for each row of token numbers."""
        scores: torch.Tensor = self.net(input_ids=tokens).logits
        return scores
