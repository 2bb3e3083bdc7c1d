"""A ViT with random weights: pixels in, the scores of a thousand classes out."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import ViTConfig, ViTForImageClassification


class Vit(torch.nn.Module):
    """As large as sizes.json beside this file says; transformers' default is ViT-base with patches of 16."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = json.loads(Path(__file__).with_name("sizes.json").read_text())
        self.net = ViTForImageClassification(ViTConfig(**sizes))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """A row of scores for each image of bytes: they become numbers from 0 to 1 on the device."""
        scores: torch.Tensor = self.net(pixel_values=pixels.to(self.net.dtype) / 255).logits
        return scores
