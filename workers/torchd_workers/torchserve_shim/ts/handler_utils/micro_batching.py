"""TorchServe: ts/handler_utils/micro_batching.py."""

from torchd_workers.handlers.micro_batching import MicroBatching

__all__ = ["MicroBatching"]
