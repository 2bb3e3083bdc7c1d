"""TorchServe: ts/metrics/metric.py."""

from torchd_workers.torchserve.metric import Metric

__all__ = ["Metric"]
