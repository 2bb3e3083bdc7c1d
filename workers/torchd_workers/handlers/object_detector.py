"""ObjectDetector: what an image shows, and where."""

from __future__ import annotations

from typing import Any

from torchd_workers.handlers.image_transforms import Compose, ToRGB, ToTensor
from torchd_workers.handlers.labels import map_class_to_label
from torchd_workers.handlers.vision_handler import VisionHandler


class ObjectDetector(VisionHandler):
    """Answers a list of {label: [left, top, right, bottom], "score": s} of what scores at least `threshold`."""

    image_processing = Compose([ToRGB(), ToTensor()])
    threshold = 0.5

    def postprocess(self, data: Any) -> list[Any]:
        """One list per image from the model's dict of boxes, labels and scores."""
        return [self._found(image) for image in data]

    def _found(self, image: dict[str, Any]) -> list[dict[str, Any]]:
        is_sure = image["scores"] >= self.threshold
        boxes, labels, scores = (image[name][is_sure].tolist() for name in ("boxes", "labels", "scores"))
        return [
            {**map_class_to_label([[box]], self.mapping, [[label]])[0], "score": score}
            for box, label, score in zip(boxes, labels, scores, strict=True)
        ]
