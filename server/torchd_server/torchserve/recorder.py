"""TorchServe's metrics: each fact goes to the page, to the log, or nowhere, as metrics_mode and metrics.yaml say.

`Recorder` owns the values. Series of handlers belong to the model that made them, are bounded and leave with it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping

from torchd_protos.frames import Metric
from torchd_server.torchserve import metrics_text
from torchd_server.torchserve.metric_families import Family
from torchd_server.torchserve.metrics_config import (
    DIMENSIONS_AT_MOST,
    HOSTNAME,
    KINDS,
    LABEL_NAME,
    METRIC_NAME,
    MetricsConfig,
    MetricSpec,
)
from torchd_server.torchserve.metrics_log import MetricsLog

logger = logging.getLogger(__name__)

SERIES_AT_MOST = 1000  # of one model (E22)
OURS = "torchd_"
HOST = "Host"
LOAD_TIME = "WorkerLoadTime"
DEFAULT_VERSION = "default"
_LEGACY = ("ts_inference_requests_total", "ts_inference_latency_microseconds", "ts_queue_latency_microseconds")
# In the log a name may be what it wants as long as the line can be read.
_LOGGED_NAME = re.compile(r"[^\s|:#,\x00-\x1f\x7f]{1,200}")
_UNNAMED = "a name must be letters, digits, '_' and ':'"


class Recorder:
    """What there is to know of TorchServe's metrics."""

    def __init__(
        self, mode: str, config: MetricsConfig, auto_detect: bool, hostname: str, log: MetricsLog | None
    ) -> None:
        self._mode = mode
        self._auto_detect = auto_detect
        self._hostname = hostname
        self._log = log
        self._server = config.server
        self._handlers = config.handlers
        self._detected: dict[str, MetricSpec] = {}
        self._families = {name: Family(spec) for name, spec in config.server.items() if self._is_on_page(name)}
        if mode == "prometheus":
            self._families |= {name: Family(spec) for name, spec in config.handlers.items()}
        # The series that came with a model: they are counted, and go with it.
        self._owned: dict[str, set[tuple[str, tuple[str, ...]]]] = {}
        self._complained: set[tuple[str, str]] = set()
        self.hears_requests = bool(self._families) or log is not None

    def _is_on_page(self, name: str) -> bool:
        return self._mode == "prometheus" or (self._mode == "legacy" and name in _LEGACY)

    # Facts of the server.

    def requested(self, model: str, version: str) -> None:
        """A request came in for a registered model; `version` is empty where the caller named none."""
        self._of_version("ts_inference_requests_total", model, version, 1.0)

    def answered(self, model: str, version: str, queue_seconds: float, total_seconds: float) -> None:
        """A request was answered without an error."""
        self._of_version("ts_inference_latency_microseconds", model, version, round(total_seconds * 1e6, 3))
        self._of_version("ts_queue_latency_microseconds", model, version, round(queue_seconds * 1e6, 3))
        self._of_host("QueueTime", float(int(queue_seconds * 1000)))

    def thread_time(self, seconds: float) -> None:
        """What a batch cost beside its handler: the way to the worker and back."""
        self._of_host("WorkerThreadTime", float(int(seconds * 1000)))

    def worker_loaded(self, worker: str, model: str, version: str, seconds: float) -> None:
        """A worker has loaded its model."""
        self._record(LOAD_TIME, self._worker_labels(worker, model, version), float(int(seconds * 1000)), model)

    def worker_gone(self, worker: str, model: str, version: str) -> None:
        """A worker has ended: each has a name of its own, so its series would stay one more for each restart."""
        labels = self._worker_labels(worker, model, version)
        if (family := self._families.get(LOAD_TIME)) is not None:
            family.forget(labels)
        self._owned.get(model, set()).discard((LOAD_TIME, labels))

    def _worker_labels(self, worker: str, model: str, version: str) -> tuple[str, ...]:
        return (f"W-{worker}-{model}_{version}", HOST, self._hostname)

    def http_answered(self, status: int) -> None:
        """A REST port has answered; what is neither 2xx nor 4xx counts as 5XX."""
        hundred = status // 100
        self._of_host(f"Requests{hundred if hundred in (2, 4) else 5}XX", 1.0)

    def system(self, readings: Iterable[tuple[str, str | None, float]]) -> None:
        """Readings of the machine: the metric, the device or None, the value."""
        for name, device, value in readings:
            labels = (HOST, self._hostname) if device is None else (HOST, device, self._hostname)
            self._record(name, labels, value)

    def _of_host(self, name: str, value: float) -> None:
        self._record(name, (HOST, self._hostname), value)

    def _of_version(self, name: str, model: str, version: str, value: float) -> None:
        self._record(name, (model, version or DEFAULT_VERSION, self._hostname), value, model)

    def _record(self, name: str, labels: tuple[str, ...], value: float, owner: str = "") -> None:
        family = self._families.get(name)
        if family is not None:
            if owner and labels not in family:
                self._owned.setdefault(owner, set()).add((name, labels))
            family.record(labels, value)
        elif self._log is not None and (spec := self._server.get(name)) is not None:
            self._log.of_server(spec, labels, value)

    # Facts of handlers.

    def of_handler(self, model: str, version: str, worker: str, metric: Metric) -> None:
        """One value of a handler; what metrics.yaml does not know is dropped unless metrics are detected."""
        try:
            spec = self._spec(metric)
            if spec is None:
                return
            labels = (*_values(spec, metric), self._hostname)
            if self._mode == "prometheus":
                self._on_page(model, spec, labels, metric.value)
        except _Unusable as error:
            self._complain(model, metric.name, str(error))
            return
        if self._mode != "prometheus" and self._log is not None:
            thread = f"W-{worker}-{model}_{version}-stdout"
            self._log.of_handler(spec, labels, metric.value, thread, metric.request_id)

    def _spec(self, metric: Metric) -> MetricSpec | None:
        spec = self._handlers.get(metric.name) or self._detected.get(metric.name)
        if spec is None and self._auto_detect:
            spec = self._detect(metric)
        if spec is not None and spec.kind != metric.type:
            raise _Unusable(f"it is a {spec.kind} and was given as a {metric.type}")
        return spec

    def _detect(self, metric: Metric) -> MetricSpec:
        names = tuple(dimension.name for dimension in metric.dimensions if dimension.name != HOSTNAME)
        allowed, allowed_labels = (
            (METRIC_NAME, LABEL_NAME) if self._mode == "prometheus" else (_LOGGED_NAME, _LOGGED_NAME)
        )
        if not allowed.fullmatch(metric.name):
            raise _Unusable(_UNNAMED)
        if metric.type not in KINDS or len(names) != len(set(names)) or len(names) >= DIMENSIONS_AT_MOST:
            raise _Unusable(f"it must be one of {', '.join(KINDS)} with less than {DIMENSIONS_AT_MOST} dimensions")
        for name in names:
            if not allowed_labels.fullmatch(name):
                raise _Unusable(f"dimension {name[:100]!r}: {_UNNAMED}")
        if metric.name in self._server or metric.name.startswith(OURS):
            raise _Unusable("the server has a metric of this name")
        return MetricSpec(metric.name, metric.type, metric.unit[:100], (*names, HOSTNAME))

    def _on_page(self, model: str, spec: MetricSpec, labels: tuple[str, ...], value: float) -> None:
        labels = tuple(label[: metrics_text.LABEL_CHARACTERS] for label in labels)
        family = self._families.get(spec.name)
        if family is None or labels not in family:
            owned = self._owned.setdefault(model, set())
            if len(owned) >= SERIES_AT_MOST:
                raise _Unusable(f"the model has {SERIES_AT_MOST} series already; give dimensions fewer values")
            owned.add((spec.name, labels))
        if family is None:
            self._detected[spec.name] = spec
            family = self._families[spec.name] = Family(spec)
        family.record(labels, value)

    def _complain(self, model: str, name: str, reason: str) -> None:
        """Once for each metric: a handler may be wrong many times a second."""
        told = (model, name[:200])
        if told not in self._complained and len(self._complained) < SERIES_AT_MOST:
            self._complained.add(told)
            logger.warning("metric %.200s of model %s is not recorded: %s", name, model, reason)

    def forget(self, model: str, version: str, is_last: bool) -> None:
        """A version is gone: its series go too, and with the last version of a model all of them."""
        owned = self._owned.get(model, set())
        gone = {
            (name, labels)
            for name, labels in owned
            if is_last or labels[:2] == (model, version) or labels[0].endswith(f"-{model}_{version}")
        }
        for name, labels in gone:
            family = self._families[name]
            family.forget(labels)
            if name in self._detected and not family:
                del self._families[name], self._detected[name]
        owned -= gone
        if is_last:
            self._owned.pop(model, None)
            self._complained = {told for told in self._complained if told[0] != model}

    def snapshot(self) -> Callable[[Collection[str]], bytes]:
        """What makes the page of this moment, in any thread; it takes the names of the samples wanted."""
        families = [family.snapshot() for family in self._families.values()]
        return lambda names: metrics_text.text(families, names)


class _Unusable(ValueError):
    """A handler's metric cannot be recorded."""


def _values(spec: MetricSpec, metric: Metric) -> tuple[str, ...]:
    """The values in the order of the metric's dimensions, but for the host's."""
    wanted = tuple(name for name in spec.dimensions if name != HOSTNAME)
    given: Mapping[str, str] = {dimension.name: dimension.value for dimension in metric.dimensions}
    missing = [name for name in wanted if name not in given]
    surplus = [name for name in given if name not in wanted and name != HOSTNAME]
    if missing or surplus:
        raise _Unusable(f"its dimensions are {', '.join(wanted)}, and it was given {', '.join(given)[:200]}")
    return tuple(given[name] for name in wanted)
