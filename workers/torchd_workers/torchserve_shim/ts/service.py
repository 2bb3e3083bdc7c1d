"""TorchServe: ts/service.py."""

from torchd_workers.failures import PredictionException

__all__ = ["PredictionException"]
