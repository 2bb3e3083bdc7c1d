"""TorchServe: ts/metrics/dimension.py."""

from torchd_workers.metrics import Dimension

__all__ = ["Dimension"]
