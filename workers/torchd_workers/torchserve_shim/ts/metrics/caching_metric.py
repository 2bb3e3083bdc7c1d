"""TorchServe: ts/metrics/caching_metric.py."""

from torchd_workers.metrics import CachingMetric

__all__ = ["CachingMetric"]
