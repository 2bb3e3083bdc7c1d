"""DALIImageClassifier: ImageClassifier's answers, from images that a DALI pipeline prepared."""

from __future__ import annotations

from typing import Any

from torchd_workers.handlers.dali_handler import DALIHandler
from torchd_workers.handlers.image_classifier import likeliest


class DALIImageClassifier(DALIHandler):
    """Answers {label: probability} with the `topk` likeliest classes."""

    topk = 5

    def set_max_result_classes(self, topk: int) -> None:
        """How many classes an answer has."""
        self.topk = topk

    def get_max_result_classes(self) -> int:
        """How many classes an answer has."""
        return self.topk

    def postprocess(self, data: Any) -> list[Any]:
        """The likeliest classes of each row of scores."""
        return likeliest(data, self.topk, self.mapping)
