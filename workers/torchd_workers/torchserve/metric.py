"""Metrics made by hand, without `context.metrics`: Metric, and the MetricsStore of handlers' unit tests."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import Any

from torchd_workers.metrics import UNITS, CachingMetric, Dimension, MetricTypes


class Units:
    """The names of units, by what handlers call them."""

    def __init__(self) -> None:
        self.units: dict[str | None, str] = dict([*UNITS.items(), (None, UNITS[""])])


class Metric:
    """One counter with fixed dimensions. Its text is TorchServe's line of a metric."""

    def __init__(
        self,
        name: str,
        value: float,
        unit: str,
        dimensions: list[Dimension],
        request_id: str | None = None,
        metric_method: str | None = None,
    ) -> None:
        self._metric = CachingMetric(name, unit, [dimension.name for dimension in dimensions])
        self.metric_type = MetricTypes.COUNTER
        self.name = name
        self.unit = self._metric.unit
        self.value = value
        self.dimensions = dimensions
        self.request_id = request_id
        self.metric_method = metric_method

    def update(self, value: float) -> None:
        """Sends a value."""
        self.value = value
        self._metric.update(value, self.request_id or "", self.dimensions)

    def reset(self) -> None:
        """Sends 0."""
        self.update(0)

    def __str__(self) -> str:
        dimensions = ",".join(map(str, self.dimensions))
        ending = f",{self.request_id}" if self.request_id else ""
        host, now = socket.gethostname(), int(time.time())
        return f"{self.name}.{self.unit}:{self.value}|#{dimensions}|#hostname:{host},{now}{ending}"

    def to_dict(self) -> dict[str, Any]:
        """The metric as a dict."""
        return {
            "MetricName": self.name,
            "Value": self.value,
            "Unit": self.unit,
            "Dimensions": self.dimensions,
            "Timestamp": int(time.time()),
            "HostName": socket.gethostname(),
            "RequestId": self.request_id,
        }


class MetricsStore:
    """Keeps what a handler adds, for a test to look at: `store` in order, `cache` by name, unit, request, labels."""

    def __init__(self, request_ids: Any, model_name: str) -> None:
        self.request_ids = request_ids
        self.model_name = model_name
        self.store: list[Metric] = []
        self.cache: dict[str, Metric] = {}

    def add_counter(
        self, name: str, value: float, idx: int | None = None, dimensions: list[Dimension] | None = None
    ) -> None:
        """Keeps a count."""
        self._keep(name, value, self._request_id(idx), "count", "counter", dimensions)

    def add_time(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "ms",
        dimensions: list[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Keeps a duration in `ms` or `s`."""
        _check_unit(unit, "ms", "s")
        self._keep(name, value, self._request_id(idx), unit, metric_type.value, dimensions)

    def add_size(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "MB",
        dimensions: list[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Keeps a size in `B`, `kB`, `MB` or `GB`."""
        _check_unit(unit, "B", "kB", "MB", "GB")
        self._keep(name, value, self._request_id(idx), unit, metric_type.value, dimensions)

    def add_percent(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        dimensions: list[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Keeps a share in percent."""
        self._keep(name, value, self._request_id(idx), "percent", metric_type.value, dimensions)

    def add_error(self, name: str, value: float, dimensions: list[Dimension] | None = None) -> None:
        """Keeps an error."""
        self._keep(name, value, None, "", "counter", dimensions)

    def add_metric(
        self,
        name: str,
        value: float,
        unit: str,
        idx: int | None = None,
        dimensions: list[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        """Keeps any metric."""
        self._keep(name, value, self._request_id(idx), unit, metric_type.value, dimensions)

    def _keep(
        self,
        name: str,
        value: float,
        request_id: str | None,
        unit: str,
        method: str,
        dimensions: list[Dimension] | None,
    ) -> None:
        usual = [Dimension("ModelName", self.model_name), Dimension("Level", "Model")]
        labels = [*(dimensions or []), *(usual if request_id is not None else [Dimension("Level", "Error")])]
        key = "-".join([name, unit, str(request_id), *map(str, labels)])
        metric = self.cache.get(key)
        if metric is not None:
            metric.update(value)
            return
        self.cache[key] = Metric(name, value, unit, labels, request_id, method)
        self.store.append(self.cache[key])

    def _request_id(self, idx: int | None) -> Any:
        if not isinstance(self.request_ids, Mapping):
            return self.request_ids
        if idx is not None and idx in self.request_ids:
            return self.request_ids[idx]
        return ",".join(self.request_ids.values())


def _check_unit(unit: str, *allowed: str) -> None:
    if unit not in allowed:
        raise ValueError(f"the unit {unit!r} does not fit; it may be {', '.join(allowed)}")
