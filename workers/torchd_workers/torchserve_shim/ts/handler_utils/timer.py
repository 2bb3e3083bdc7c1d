"""TorchServe: ts/handler_utils/timer.py."""

from torchd_workers.handlers.timer import timed

__all__ = ["timed"]
