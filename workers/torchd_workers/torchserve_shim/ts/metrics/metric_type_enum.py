"""TorchServe: ts/metrics/metric_type_enum.py."""

from torchd_workers.metrics import MetricTypes

__all__ = ["MetricTypes"]
