"""TorchServe: ts/torch_handler/image_classifier.py."""

from torchd_workers.handlers.image_classifier import ImageClassifier

__all__ = ["ImageClassifier"]
