"""TorchServe: ts/torch_handler/dali_image_classifier.py."""

from torchd_workers.handlers.dali_image_classifier import DALIImageClassifier

__all__ = ["DALIImageClassifier"]
