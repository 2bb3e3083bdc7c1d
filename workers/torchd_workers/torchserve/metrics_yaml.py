"""The model metrics that a metrics.yaml declares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from torchd_workers.metrics import Metrics, MetricTypes, send
from torchd_workers.torchserve.metric_errors import (
    MetricsCacheIOError,
    MetricsCacheKeyError,
    MetricsCachePyYamlError,
    MetricsCacheTypeError,
    MetricsCacheValueError,
)


class MetricsCacheYamlImpl(Metrics):
    """`context.metrics` with the metrics of a file in it, once `initialize_cache` is called."""

    def __init__(self, config_file_path: str, model_name: str = "") -> None:
        super().__init__(send, model_name)
        if not config_file_path:
            raise MetricsCacheTypeError(f"a metrics file is named by text, not by {config_file_path!r}")
        self.config_file_path = config_file_path
        self._content = _read(config_file_path)

    def initialize_cache(self) -> None:
        """Adds the metrics under `model_metrics`, by type."""
        where = self.config_file_path
        if "model_metrics" not in self._content:
            raise MetricsCacheKeyError(f"{where} has no model_metrics")
        if not self._content["model_metrics"]:
            raise MetricsCacheValueError(f"{where} declares nothing under model_metrics")
        for kind, metrics in self._content["model_metrics"].items():
            try:
                metric_type = MetricTypes(kind)
            except ValueError as error:
                allowed = ", ".join(known.value for known in MetricTypes)
                raise MetricsCacheKeyError(f"{where}: {kind!r} is none of {allowed}") from error
            for metric in metrics:
                try:
                    self.add_metric_to_cache(metric["name"], metric["unit"], metric["dimensions"], metric_type)
                except KeyError as error:
                    raise MetricsCacheKeyError(f"{where}: a {kind} lacks {error}") from error


def _read(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise MetricsCachePyYamlError(f"{path}: {error}") from error
    except OSError as error:
        raise MetricsCacheIOError(f"{path}: {error}") from error
    return content if isinstance(content, dict) else {}
