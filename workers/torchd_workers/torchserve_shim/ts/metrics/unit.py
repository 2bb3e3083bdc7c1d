"""TorchServe: ts/metrics/unit.py."""

from torchd_workers.torchserve.metric import Units

__all__ = ["Units"]
