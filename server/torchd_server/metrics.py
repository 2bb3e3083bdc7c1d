"""The numbers the daemon keeps of itself, in Prometheus' form. Labels are registered models and fixed words only."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from torchd_protos.frames import Metric

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
WORKER_STATES = ("starting", "loading", "ready", "draining", "back_off")


class Sink(Protocol):
    """Who else hears of the facts: TorchServe's metrics. Times in seconds."""

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
        self._registry.register(_Dropped(log_records_dropped))
        self._owners: dict[tuple[str, str], ModelMetrics] = {}
        version = ("model", "version")

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, version, registry=self._registry, buckets=buckets)

        self._stages = {
            "queue": histogram("torchd_queue_seconds", "Time from arrival until sent to a worker", SECONDS),
            "batch_wait": histogram(
                "torchd_batch_wait_seconds", "Time a batch waited for company, worker idle", SECONDS
            ),
            "worker": histogram("torchd_worker_seconds", "Time from sent to a worker until the last answer", SECONDS),
            "total": histogram("torchd_request_seconds", "Time from arrival until the last answer", SECONDS),
        }
        self._batch_size = histogram("torchd_batch_size", "Requests in a batch", BATCH_SIZES)
        self._outcomes = Counter(
            "torchd_requests", "Requests by outcome", (*version, "outcome"), registry=self._registry
        )
        self._depth = Gauge("torchd_queue_depth", "Requests waiting", version, registry=self._registry)
        self._workers = Gauge("torchd_workers", "Workers by state", (*version, "state"), registry=self._registry)
        self.tls_reloads = Counter(
            "torchd_tls_reloads", "Changed certificates, taken or refused", ("outcome",), registry=self._registry
        )
        self._tasks = Gauge("torchd_tasks", "Asyncio tasks of the daemon", registry=self._registry)
        self._restarts = Counter(
            "torchd_worker_failures", "Workers that died or could not load", version, registry=self._registry
        )

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


class ModelMetrics:
    """The metrics of one model version, its labels bound once."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._labels = (model, version)
        self._metrics = metrics
        stages = {name: stage.labels(model, version) for name, stage in metrics._stages.items()}
        self.queue_seconds = stages["queue"].observe
        self.batch_wait_seconds = stages["batch_wait"].observe
        self._worker_seconds = stages["worker"].observe
        self._last_step_seconds = 0.0
        self.total_seconds = stages["total"].observe
        self.batch_size = metrics._batch_size.labels(model, version).observe
        self.worker_failed = metrics._restarts.labels(model, version).inc
        self.queue_depth = metrics._depth.labels(model, version)
        self._outcomes: dict[str, Counter] = {}
        self._states = {state: metrics._workers.labels(model, version, state) for state in WORKER_STATES}

    def outcome(self, name: str) -> None:
        """One request ended so: "ok" or the name of an error class."""
        counter = self._outcomes.get(name)
        if counter is None:
            counter = self._outcomes[name] = self._metrics._outcomes.labels(*self._labels, name)
        counter.inc()

    def requested(self, version: str) -> None:
        """A request came in that named this version, or "" for the default one."""
        self._metrics.sink.requested(self._labels[0], version)

    def answered(self, version: str, queue_seconds: float, total_seconds: float) -> None:
        """A request that named this version was answered without an error."""
        self._metrics.sink.answered(self._labels[0], version, queue_seconds, total_seconds)

    def worker_seconds(self, seconds: float) -> None:
        """A batch took so long from sent until its last answer."""
        self._worker_seconds(seconds)
        self._last_step_seconds = seconds

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
        if not self._metrics.owns(self, self._labels):
            return
        for state, gauge in self._states.items():
            gauge.set(states.count(state))

    def forget(self) -> None:
        """The version is gone: its series go too, so that labels stay bounded by what is registered."""
        if not self._metrics.gives_up(self, self._labels):
            return
        families = (
            *self._metrics._stages.values(),
            self._metrics._batch_size,
            self._metrics._restarts,
            self._metrics._depth,
        )
        for family in families:
            family.remove(*self._labels)
        for name in self._outcomes:
            self._metrics._outcomes.remove(*self._labels, name)
        for state in WORKER_STATES:
            self._metrics._workers.remove(*self._labels, state)


class _Dropped(Collector):
    """Reads the number of lost log records when asked."""

    def __init__(self, dropped: Callable[[], int]) -> None:
        self._dropped = dropped

    def describe(self) -> Iterator[CounterMetricFamily]:
        """By its name the registry finds it."""
        return self.collect()

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The one family."""
        yield CounterMetricFamily(
            "torchd_log_records_dropped", "Log records lost because the log could not be written", self._dropped()
        )
