"""TorchServe: ts/metrics/metric_cache_yaml_impl.py."""

from torchd_workers.torchserve.metrics_yaml import MetricsCacheYamlImpl

__all__ = ["MetricsCacheYamlImpl"]
