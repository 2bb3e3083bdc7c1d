"""ImageClassifier: the likeliest classes of an image."""

from __future__ import annotations

from typing import Any

import torch

from torchd_workers.handlers.image_transforms import IMAGENET
from torchd_workers.handlers.labels import map_class_to_label
from torchd_workers.handlers.timer import timed
from torchd_workers.handlers.vision_handler import VisionHandler


class ImageClassifier(VisionHandler):
    """Answers {label: probability} with the `topk` likeliest classes."""

    topk = 5
    image_processing = IMAGENET

    def set_max_result_classes(self, topk: int) -> None:
        """How many classes an answer has."""
        self.topk = topk

    def get_max_result_classes(self) -> int:
        """How many classes an answer has."""
        return self.topk

    @timed
    def postprocess(self, data: Any) -> list[Any]:
        """The likeliest classes of each row of scores."""
        return likeliest(data, self.topk, self.mapping)


def likeliest(scores: torch.Tensor, count: int, mapping: dict[str, str] | None) -> list[Any]:
    """{label: probability} per row, the likeliest class first; fewer where the model has fewer classes."""
    probabilities, classes = torch.softmax(scores, dim=1).topk(min(count, scores.shape[1]), dim=1)
    return map_class_to_label(probabilities.tolist(), mapping, classes.tolist())
