"""The numbers the daemon keeps of itself, in Prometheus' form. Labels are registered models and fixed words only."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
WORKER_STATES = ("starting", "loading", "ready", "draining", "back_off")


class Metrics:
    """Every metric of the daemon."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
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
        tasks = Gauge("torchd_tasks", "Asyncio tasks of the daemon", registry=self._registry)
        tasks.set_function(lambda: len(asyncio.all_tasks()))
        self.tls_reloads = Counter(
            "torchd_tls_reloads", "Changed certificates, taken or refused", ("outcome",), registry=self._registry
        )
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
        return True

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


class ModelMetrics:
    """The metrics of one model version, its labels bound once."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._labels = (model, version)
        self._metrics = metrics
        stages = {name: stage.labels(model, version) for name, stage in metrics._stages.items()}
        self.queue_seconds = stages["queue"].observe
        self.batch_wait_seconds = stages["batch_wait"].observe
        self.worker_seconds = stages["worker"].observe
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
