"""TorchServe: ts/torch_handler/distributed/base_pippy_handler.py."""

from torchd_workers.handlers.distributed.base_pippy_handler import BasePippyHandler

__all__ = ["BasePippyHandler"]
