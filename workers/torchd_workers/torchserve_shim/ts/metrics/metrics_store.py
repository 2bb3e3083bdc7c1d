"""TorchServe: ts/metrics/metrics_store.py."""

from torchd_workers.torchserve.metric import MetricsStore

__all__ = ["MetricsStore"]
