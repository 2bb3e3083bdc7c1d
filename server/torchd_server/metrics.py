"""The numbers the daemon keeps of itself, and their page. Labels are registered models and fixed words only.

A request adds to plain integers; prometheus_client, whose series have a lock each, sees them when a page is asked for.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import (
    Metric as Family,
)
from prometheus_client.registry import Collector

from torchd_protos.frames import Metric

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
WORKER_STATES = ("starting", "loading", "ready", "draining", "back_off")


class Sink(Protocol):
    """Who else hears of the facts: TorchServe's metrics. Times in seconds."""

    @property
    def hears_requests(self) -> bool:
        """Whether anybody will read what it is told of requests and batches; if not, it need not be told."""

    def requested(self, model: str, version: str) -> None:
        """A request came in; `version` is the one its caller named."""

    def answered(self, model: str, version: str, queue_seconds: float, total_seconds: float) -> None:
        """A request was answered without an error."""

    def thread_time(self, seconds: float) -> None:
        """What a batch cost beside its handler."""

    def worker_loaded(self, worker: str, model: str, version: str, seconds: float) -> None:
        """A worker has loaded its model."""

    def worker_gone(self, worker: str, model: str, version: str) -> None:
        """A worker that had loaded its model has ended."""

    def of_handler(self, model: str, version: str, worker: str, metric: Metric) -> None:
        """A handler has given a value."""

    def forget(self, model: str, version: str, is_last: bool) -> None:
        """A version is gone; `is_last` where the model went with it."""

    def snapshot(self) -> Callable[[Collection[str]], bytes]:
        """What makes its part of the page, in any thread, out of the names asked for."""


class NoSink:
    """Nobody else listens."""

    hears_requests = False

    def requested(self, model: str, version: str) -> None:
        """Nothing."""

    def answered(self, model: str, version: str, queue_seconds: float, total_seconds: float) -> None:
        """Nothing."""

    def thread_time(self, seconds: float) -> None:
        """Nothing."""

    def worker_loaded(self, worker: str, model: str, version: str, seconds: float) -> None:
        """Nothing."""

    def worker_gone(self, worker: str, model: str, version: str) -> None:
        """Nothing."""

    def of_handler(self, model: str, version: str, worker: str, metric: Metric) -> None:
        """Nothing."""

    def forget(self, model: str, version: str, is_last: bool) -> None:
        """Nothing."""

    def snapshot(self) -> Callable[[Collection[str]], bytes]:
        """Nothing."""
        return lambda names: b""


class Metrics:
    """Every metric of the daemon. `has_own_page` false keeps the torchd_* families off the page."""

    def __init__(
        self,
        sink: Sink | None = None,
        has_own_page: bool = True,
        log_records_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        self.sink = sink or NoSink()
        self._has_own_page = has_own_page
        self._rendering: asyncio.Task[bytes] | None = None
        self._registry = CollectorRegistry()
        self._owners: dict[tuple[str, str], ModelMetrics] = {}
        self._registry.register(_Collected(log_records_dropped, self._owners))
        self.tls_reloads = PrometheusCounter(
            "torchd_tls_reloads", "Changed certificates, taken or refused", ("outcome",), registry=self._registry
        )
        self._tasks = Gauge("torchd_tasks", "Asyncio tasks of the daemon", registry=self._registry)

    def of_model(self, model: str, version: str) -> ModelMetrics:
        """The metrics of one model version; the series are the newest one's, should an older one still be draining."""
        self._owners[model, version] = metrics = ModelMetrics(self, model, version)
        return metrics

    def owns(self, metrics: ModelMetrics, labels: tuple[str, str]) -> bool:
        """Whether the series of these labels are those of `metrics`."""
        return self._owners.get(labels) is metrics

    def gives_up(self, metrics: ModelMetrics, labels: tuple[str, str]) -> bool:
        """Whether the series of these labels were those of `metrics` until now."""
        if not self.owns(metrics, labels):
            return False
        del self._owners[labels]
        model, version = labels
        self.sink.forget(model, version, is_last=not any(owner == model for owner, _ in self._owners))
        return True

    async def page(self, names: Collection[str] = ()) -> bytes:
        """What /metrics answers: TorchServe's metrics, then ours; `names` chooses among the samples.

        It is made in a thread, for hundreds of models take a good part of a second, and whoever asks meanwhile for
        everything gets the same page (O02).
        """
        if names:
            return await self._render(names)
        if self._rendering is None or self._rendering.done():
            self._rendering = asyncio.create_task(self._render(()))
        return await asyncio.shield(self._rendering)

    async def _render(self, names: Collection[str]) -> bytes:
        self._tasks.set(len(asyncio.all_tasks()))
        theirs = self.sink.snapshot()
        return await asyncio.to_thread(lambda: theirs(names) + (self.text(names) if self._has_own_page else b""))

    def text(self, names: Collection[str] = ()) -> bytes:
        """The torchd_* families in Prometheus' text format."""
        if not names:
            return generate_latest(self._registry)
        return generate_latest(self._registry.restricted_registry(names))


class Histogram:
    """How many values lie below each of `bounds`."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """One value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: tuple[str, ...]) -> None:
        """Puts what it holds on the page."""
        names = [str(float(bound)) for bound in self._bounds]
        family.add_metric(labels, list(zip([*names, "+Inf"], accumulate(self._counts), strict=True)), self._sum)


class ModelMetrics:
    """The metrics of one model version."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._labels = (model, version)
        self._metrics = metrics
        self.stages = {name: Histogram(BATCH_SIZES if name == "torchd_batch_size" else SECONDS) for name in _STAGES}
        queue, wait, worker, total, size = (stage.observe for stage in self.stages.values())
        self.queue_seconds, self.batch_wait_seconds, self.total_seconds, self.batch_size = queue, wait, total, size
        self._worker_seconds = worker
        self._last_step_seconds = 0.0
        self.outcomes: Counter[str] = Counter()
        self.states: Counter[str] = Counter()
        self.failures = 0
        # Asked when the page is made; whoever has the queue sets it.
        self.queue_depth: Callable[[], int] = int
        self.hears_requests = metrics.sink.hears_requests

    def outcome(self, name: str) -> None:
        """One request ended so: "ok" or the name of an error class."""
        self.outcomes[name] += 1

    def requested(self, version: str) -> None:
        """A request came in that named this version, or "" for the default one."""
        if self.hears_requests:
            self._metrics.sink.requested(self._labels[0], version)

    def answered(self, version: str, queue_seconds: float, total_seconds: float) -> None:
        """A request that named this version was answered without an error."""
        if self.hears_requests:
            self._metrics.sink.answered(self._labels[0], version, queue_seconds, total_seconds)

    def worker_seconds(self, seconds: float) -> None:
        """A batch took so long from sent until its last answer."""
        self._worker_seconds(seconds)
        self._last_step_seconds = seconds

    def worker_failed(self) -> None:
        """A worker died or could not load."""
        self.failures += 1

    def worker_loaded(self, worker: str, seconds: float) -> None:
        """A worker took so long from its start until it was ready."""
        self._metrics.sink.worker_loaded(worker, *self._labels, seconds)

    def worker_gone(self, worker: str) -> None:
        """A worker that was ready has ended."""
        self._metrics.sink.worker_gone(worker, *self._labels)

    def of_handler(self, metric: Metric, worker: str) -> None:
        """A worker has sent a value: its handler's, or the time of the handler's call, which ends each batch."""
        if metric.name == "PredictionTime" and math.isfinite(metric.value):  # a handler may send what it likes
            self._metrics.sink.thread_time(max(0.0, self._last_step_seconds - metric.value / 1000))
        self._metrics.sink.of_handler(*self._labels, worker, metric)

    def worker_states(self, states: list[str]) -> None:
        """The states of the workers there are now."""
        self.states = Counter(states)

    def forget(self) -> None:
        """The version is gone: its series go too, so that labels stay bounded by what is registered."""
        self._metrics.gives_up(self, self._labels)


_STAGES = {
    "torchd_queue_seconds": "Time from arrival until sent to a worker",
    "torchd_batch_wait_seconds": "Time a batch waited for company, worker idle",
    "torchd_worker_seconds": "Time from sent to a worker until the last answer",
    "torchd_request_seconds": "Time from arrival until the last answer",
    "torchd_batch_size": "Requests in a batch",
}


class _Collected(Collector):
    """The families whose values are kept here, put together when asked for, in any thread."""

    def __init__(self, dropped: Callable[[], int], owners: Mapping[tuple[str, str], ModelMetrics]) -> None:
        self._dropped = dropped
        self._owners = owners

    def describe(self) -> Iterable[Family]:
        """By their names the registry finds them."""
        return self._families({})

    def collect(self) -> Iterable[Family]:
        """Every family."""
        return self._families(dict(self._owners))

    def _families(self, owners: Mapping[tuple[str, str], ModelMetrics]) -> Iterator[Family]:
        yield CounterMetricFamily(
            "torchd_log_records_dropped", "Log records lost because the log could not be written", self._dropped()
        )
        version = ("model", "version")
        for name, text in _STAGES.items():
            histogram = HistogramMetricFamily(name, text, labels=version)
            for labels, metrics in owners.items():
                metrics.stages[name].add_to(histogram, labels)
            yield histogram
        outcomes = CounterMetricFamily("torchd_requests", "Requests by outcome", labels=(*version, "outcome"))
        depths = GaugeMetricFamily("torchd_queue_depth", "Requests waiting", labels=version)
        workers = GaugeMetricFamily("torchd_workers", "Workers by state", labels=(*version, "state"))
        failures = CounterMetricFamily("torchd_worker_failures", "Workers that died or could not load", labels=version)
        for labels, metrics in owners.items():
            for outcome, count in list(metrics.outcomes.items()):
                outcomes.add_metric((*labels, outcome), count)
            depths.add_metric(labels, metrics.queue_depth())
            for state in WORKER_STATES:
                workers.add_metric((*labels, state), metrics.states[state])
            failures.add_metric(labels, metrics.failures)
        yield from (outcomes, depths, workers, failures)
