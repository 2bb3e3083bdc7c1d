"""What may be wrong with a metric or a metrics file."""

from __future__ import annotations

import yaml

from torchd_workers.metrics import MetricsCacheKeyError, MetricsCacheTypeError, MetricsCacheValueError

__all__ = [
    "GeneralMetricsCacheError",
    "MetricsCacheIOError",
    "MetricsCacheKeyError",
    "MetricsCachePyYamlError",
    "MetricsCacheTypeError",
    "MetricsCacheValueError",
]


class GeneralMetricsCacheError(Exception):
    """Anything else."""


class MetricsCacheIOError(OSError):
    """A metrics file cannot be read."""


class MetricsCachePyYamlError(yaml.YAMLError):
    """A metrics file is no YAML."""
