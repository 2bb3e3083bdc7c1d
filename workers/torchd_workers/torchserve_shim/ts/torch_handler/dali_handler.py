"""TorchServe: ts/torch_handler/dali_handler.py."""

from torchd_workers.handlers.dali_handler import DALIHandler

__all__ = ["DALIHandler"]
