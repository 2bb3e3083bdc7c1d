"""TorchServe: ts/torch_handler/text_classifier.py."""

from torchd_workers.handlers.text_classifier import TextClassifier

__all__ = ["TextClassifier"]
