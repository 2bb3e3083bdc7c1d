"""TorchServe: ts/torch_handler/object_detector.py."""

from torchd_workers.handlers.object_detector import ObjectDetector

__all__ = ["ObjectDetector"]
