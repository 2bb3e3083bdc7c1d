"""The model metrics that a metrics.yaml declares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from torchd_workers.metrics import Metrics, MetricTypes
from torchd_workers.torchserve.metric import send
from torchd_workers.torchserve.metric_errors import (
    MetricsCacheIOError,
    MetricsCachePyYamlError,
    MetricsCacheTypeError,
    MetricsCacheValueError,
)


class MetricsCacheYamlImpl(Metrics):
    """`context.metrics` with the metrics of a file in it, once `initialize_cache` is called."""

    def __init__(self, config_file_path: str, model_name: str = "") -> None:
        super().__init__(send, model_name)
        if not isinstance(config_file_path, str) or not config_file_path:
            raise MetricsCacheTypeError(f"a metrics file is named by text, not by {config_file_path!r}")
        self.config_file_path = config_file_path

    def initialize_cache(self) -> None:
        """Adds the metrics under `model_metrics`, by type."""
        declared = self._read().get("model_metrics")
        if not declared:
            raise MetricsCacheValueError(f"{self.config_file_path} declares no model_metrics")
        for kind, metrics in declared.items():
            try:
                metric_type = MetricTypes(kind)
            except ValueError as error:
                allowed = ", ".join(known.value for known in MetricTypes)
                raise MetricsCacheValueError(f"{self.config_file_path}: {kind!r} is none of {allowed}") from error
            for metric in metrics:
                self.add_metric_to_cache(metric["name"], metric["unit"], metric["dimensions"], metric_type)

    def _read(self) -> dict[str, Any]:
        try:
            content = yaml.safe_load(Path(self.config_file_path).read_text())
        except yaml.YAMLError as error:
            raise MetricsCachePyYamlError(f"{self.config_file_path}: {error}") from error
        except OSError as error:
            raise MetricsCacheIOError(f"{self.config_file_path}: {error}") from error
        return content if isinstance(content, dict) else {}
