"""TorchServe: ts/metrics/metric_cache_errors.py."""

from torchd_workers.metrics import MetricsCacheKeyError

__all__ = ["MetricsCacheKeyError"]
