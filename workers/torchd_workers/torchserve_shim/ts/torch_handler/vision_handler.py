"""TorchServe: ts/torch_handler/vision_handler.py."""

from torchd_workers.handlers.vision_handler import VisionHandler

__all__ = ["VisionHandler"]
