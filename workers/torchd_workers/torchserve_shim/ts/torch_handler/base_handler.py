"""TorchServe: ts/torch_handler/base_handler.py."""

from torchd_workers.handlers.base import BaseHandler

__all__ = ["BaseHandler"]
