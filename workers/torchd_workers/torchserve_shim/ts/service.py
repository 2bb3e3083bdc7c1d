"""TorchServe: ts/service.py."""

from torchd_workers.failures import PredictionException
from torchd_workers.torchserve.service import Service

__all__ = ["PredictionException", "Service"]
