"""TorchServe: ts/torch_handler/densenet_handler.py."""

from torchd_workers.handlers.densenet_handler import DenseNetHandler

__all__ = ["DenseNetHandler"]
