"""TorchServe: ts/torch_handler/text_handler.py."""

from torchd_workers.handlers.text_handler import TextHandler

__all__ = ["TextHandler"]
