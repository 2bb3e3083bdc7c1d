"""`context.metrics`: TorchServe's metrics API. Values leave as Metric frames; nothing is kept here but names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from json import loads

from torchd_protos.frames import Header
from torchd_protos.frames import Metric as MetricFrame

logger = logging.getLogger(__name__)

UNITS = {
    "ms": "Milliseconds",
    "s": "Seconds",
    "percent": "Percent",
    "count": "Count",
    "MB": "Megabytes",
    "GB": "Gigabytes",
    "kB": "Kilobytes",
    "B": "Bytes",
    "": "unit",
}


class MetricTypes(Enum):
    """The kinds of metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(slots=True, eq=False)  # handlers change them and put them into sets
class Dimension:
    """One label of a metric."""

    name: str
    value: object

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"

    def to_dict(self) -> dict[str, object]:
        """As TorchServe's."""
        return {"Name": self.name, "Value": self.value}


class MetricsCacheKeyError(KeyError):
    """A metric was asked for that nobody has added."""


class MetricsCacheTypeError(TypeError):
    """A metric's name, unit or kind is not of the type it must be."""


class MetricsCacheValueError(ValueError):
    """A value of the metrics API is not one it knows."""


_senders: list[Callable[[MetricFrame], None]] = []


def send_by(send: Callable[[MetricFrame], None]) -> None:
    """From now on this process's metrics leave by `send`; before, and outside a worker, they stay where they are."""
    _senders[:] = [send]


def send(frame: MetricFrame) -> None:
    """Sends one value, where there is somebody to send it to."""
    for each in _senders:
        each(frame)


class CachingMetric:
    """A metric with fixed dimension names, to be updated with their values. Handlers may make one themselves."""

    def __init__(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
        *,
        send: Callable[[MetricFrame], None] = send,
    ) -> None:
        self._send = send
        self.metric_name = metric_name
        self.unit = UNITS.get(unit, unit)
        self.dimension_names = list(dimension_names or ())
        self.metric_type = metric_type

    def add_or_update(self, value: float, dimension_values: Sequence[object] = (), request_id: str = "") -> None:
        """Adds to a counter, sets a gauge, observes in a histogram. A wrong use is logged and not raised."""
        if len(dimension_values) != len(self.dimension_names):
            logger.error(
                "metric %s has the dimensions %s and was given %d values",
                self.metric_name,
                self.dimension_names,
                len(dimension_values),
            )
            return
        named = zip(self.dimension_names, dimension_values, strict=True)
        self.update(value, request_id, [Dimension(name, of) for name, of in named])

    def update(self, value: float, request_id: str = "", dimensions: Sequence[Dimension] = ()) -> None:
        """As add_or_update, with the dimensions named. A wrong use is logged and not raised."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            logger.error("metric %s takes a number, not %.100r", self.metric_name, value)
            return
        if self.metric_type is MetricTypes.COUNTER and number < 0:
            logger.error("counter %s cannot go down by %s", self.metric_name, value)
            return
        labels = [Header(str(dimension.name), str(dimension.value)) for dimension in dimensions]
        self._send(MetricFrame(self.metric_name, number, self.unit, self.metric_type.value, labels, request_id))


class Metrics:
    """The metrics a handler of one model may add, by name and type; those of metrics.yaml are there from the start."""

    def __init__(self, send: Callable[[MetricFrame], None], model_name: str, declared: str = "") -> None:
        self._leave = send
        self._is_silent = False
        self.model_name = model_name
        self.request_ids: Mapping[int, str] | str | None = None
        self.cache: dict[MetricTypes, dict[str, CachingMetric]] = {kind: {} for kind in MetricTypes}
        for metric in loads(declared or "[]"):
            self.add_metric_to_cache(metric["name"], metric["unit"], metric["dimensions"], MetricTypes(metric["type"]))

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Meanwhile values go nowhere: the requests are nobody's."""
        self._is_silent = True
        try:
            yield
        finally:
            self._is_silent = False

    def _send(self, frame: MetricFrame) -> None:
        if not self._is_silent:
            self._leave(frame)

    def set_request_ids(self, request_ids: Mapping[int, str] | str | None) -> None:
        """Names the requests that the next values belong to."""
        self.request_ids = request_ids

    def cache_keys(self) -> list[str]:
        """The metrics there are, as `type:name`."""
        return [f"{kind.value}:{name}" for kind, metrics in self.cache.items() for name in metrics]

    def add_metric_to_cache(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] = (),
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> CachingMetric:
        """Adds a metric whose values are given with `add_or_update`; raises MetricsCacheTypeError."""
        _check("metric_name", metric_name, str)
        _check("unit", unit, str)
        _check("metric_type", metric_type, MetricTypes)
        metric = CachingMetric(metric_name, unit, dimension_names, metric_type, send=self._send)
        self.cache[metric_type][metric_name] = metric
        return metric

    def get_metric(self, metric_name: str, metric_type: MetricTypes = MetricTypes.COUNTER) -> CachingMetric:
        """The metric of this name and type; raises MetricsCacheKeyError."""
        _check("metric_name", metric_name, str)
        _check("metric_type", metric_type, MetricTypes)
        metric = self.cache[metric_type].get(metric_name)
        if metric is None:
            known = ", ".join(self.cache_keys()) or "none"
            raise MetricsCacheKeyError(f"no {metric_type.value} {metric_name!r} was added; known: {known}")
        return metric

    def add_metric(
        self,
        name: str,
        value: float,
        unit: str,
        idx: int | None = None,
        dimensions: Sequence[Dimension] = (),
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        """One value of any metric; `idx` is the request's place in the batch."""
        request_id = self._request_id(idx)
        self._add(name, value, unit, request_id, _with_usual(dimensions, self.model_name, request_id), metric_type)

    def _add(
        self,
        name: str,
        value: float,
        unit: str,
        request_id: str | None,
        dimensions: Sequence[Dimension],
        metric_type: MetricTypes,
    ) -> None:
        _check("metric_type", metric_type, MetricTypes)
        metric = self.cache[metric_type].get(name) or self.add_metric_to_cache(
            name, unit, [dimension.name for dimension in dimensions], metric_type
        )
        values = {dimension.name: dimension.value for dimension in dimensions}
        if values.keys() == set(metric.dimension_names):
            metric.add_or_update(value, [values[name] for name in metric.dimension_names], request_id or "")
        else:  # by their places, as TorchServe takes them
            metric.add_or_update(value, [dimension.value for dimension in dimensions], request_id or "")

    def add_counter(
        self, name: str, value: float, idx: int | None = None, dimensions: Sequence[Dimension] = ()
    ) -> None:
        """Adds to a counter."""
        self.add_metric(name, value, "count", idx, dimensions)

    def add_time(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "ms",
        dimensions: Sequence[Dimension] = (),
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """A duration in `ms` or `s`."""
        if unit not in ("ms", "s"):
            raise MetricsCacheValueError(f"unit {unit!r} of {name} will not do; write ms or s")
        self.add_metric(name, value, unit, idx, dimensions, metric_type)

    def add_size(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "MB",
        dimensions: Sequence[Dimension] = (),
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """A size in `B`, `kB`, `MB` or `GB`."""
        if unit not in ("B", "kB", "MB", "GB"):
            raise MetricsCacheValueError(f"unit {unit!r} of {name} will not do; write B, kB, MB or GB")
        self.add_metric(name, value, unit, idx, dimensions, metric_type)

    def add_percent(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        dimensions: Sequence[Dimension] = (),
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """A share in percent."""
        self.add_metric(name, value, "percent", idx, dimensions, metric_type)

    def add_error(self, name: str, value: float, dimensions: Sequence[Dimension] = ()) -> None:
        """Counts an error of the handler's own naming."""
        self._add(name, value, "", None, _with_usual(dimensions, self.model_name, None), MetricTypes.COUNTER)

    def _request_id(self, idx: int | None) -> str | None:
        if not isinstance(self.request_ids, Mapping):
            return self.request_ids
        if idx is not None and idx in self.request_ids:
            return self.request_ids[idx]
        return ",".join(self.request_ids.values())


def _with_usual(dimensions: Sequence[Dimension], model: str, request_id: str | None) -> list[Dimension]:
    """The dimensions with those that TorchServe adds: the model and its level, or the level of an error."""
    usual = [Dimension("Level", "Error")]
    if request_id is not None:
        usual = [Dimension("ModelName", model), Dimension("Level", "Model")]
    named = {dimension.name for dimension in dimensions}
    return [*dimensions, *(dimension for dimension in usual if dimension.name not in named)]


def _check(what: str, value: object, wanted: type) -> None:
    if not isinstance(value, wanted):
        raise MetricsCacheTypeError(f"{what} must be a {wanted.__name__}, not {value!r:.100}")
