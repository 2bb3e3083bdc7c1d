"""ImageSegmenter: the likeliest class of every pixel."""

from __future__ import annotations

from typing import Any

import torch

from torchd_workers.handlers.image_transforms import IMAGENET
from torchd_workers.handlers.vision_handler import VisionHandler


class ImageSegmenter(VisionHandler):
    """Answers rows of columns of [class, probability]; the model gives a dict with its scores under "out"."""

    image_processing = IMAGENET

    def postprocess(self, data: Any) -> list[Any]:
        """Only the likeliest class of a pixel: all of them would be tens of megabytes."""
        probabilities, classes = torch.softmax(data["out"], dim=1).max(dim=1)
        answers: list[Any] = torch.stack([classes.type(probabilities.dtype), probabilities], dim=3).tolist()
        return answers
