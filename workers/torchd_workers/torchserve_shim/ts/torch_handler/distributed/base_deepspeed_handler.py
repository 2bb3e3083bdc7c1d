"""TorchServe: ts/torch_handler/distributed/base_deepspeed_handler.py."""

from torchd_workers.handlers.distributed.base_deepspeed_handler import BaseDeepSpeedHandler

__all__ = ["BaseDeepSpeedHandler"]
