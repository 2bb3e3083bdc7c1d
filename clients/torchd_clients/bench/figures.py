"""What a server's own metrics say of a load: the difference between two readings of its page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from math import inf

from torchd_clients.bench.measurement import ServerFigures

_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)\{(.*)\} (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_MODEL_LABELS = ("model", "model_name")
_VERSION_LABELS = ("version", "model_version")

PERCENTILES = (50.0, 90.0, 99.0)

# Name of the sample and, of a histogram, the upper bound; else infinity.
Reading = Mapping[tuple[str, float], float]


def read(page: str, model: str, version: str = "") -> Reading:
    """The samples of one model, of all its versions or of one, added up."""
    found: Counter[tuple[str, float]] = Counter()
    for line in page.splitlines():
        sample = _SAMPLE.match(line)
        if sample is None:
            continue
        name, labels, value = sample[1], dict(_LABEL.findall(sample[2])), float(sample[3])
        if not any(labels.get(label) == model for label in _MODEL_LABELS):
            continue
        if version and not any(labels.get(label) == version for label in _VERSION_LABELS):
            continue
        found[name, float(labels.get("le", inf))] += value  # type: ignore[assignment]
    return found


def between(before: Reading, after: Reading) -> ServerFigures:
    """What happened between two readings; 0 and empty where the server does not tell."""
    grown = {key: value - before.get(key, 0.0) for key, value in after.items()}

    def total(name: str) -> float:
        return grown.get((name, inf), 0.0)

    def mean(name: str) -> float:
        count = total(f"{name}_count")
        return total(f"{name}_sum") / count if count else 0.0

    queue_ms = mean("torchd_queue_seconds") * 1000
    if requests := total("ts_inference_requests_total"):
        queue_ms = queue_ms or total("ts_queue_latency_microseconds") / requests / 1000
    return ServerFigures(
        queue_ms=queue_ms,
        worker_ms=mean("torchd_worker_seconds") * 1000,
        mean_batch=mean("torchd_batch_size"),
        batch_sizes=_histogram(grown, "torchd_batch_size_bucket", 1.0),
        queue_times_ms=_histogram(grown, "torchd_queue_seconds_bucket", 1000.0),
        queue_percentiles_ms=_percentiles(grown, "torchd_queue_seconds_bucket", 1000.0),
        worker_percentiles_ms=_percentiles(grown, "torchd_worker_seconds_bucket", 1000.0),
    )


def _histogram(grown: Reading, name: str, scale: float) -> dict[float, int]:
    """Upper bound to the count of this bucket alone, empty ones left out; the page counts each with all below it."""
    found, below = {}, 0.0
    for bound, value in _buckets(grown, name):
        if value > below:
            found[bound * scale] = round(value - below)
        below = value
    return found


def _percentiles(grown: Reading, name: str, scale: float) -> dict[float, float]:
    """Percentile to value, as Prometheus' histogram_quantile has it: values lie evenly within a bucket.

    The first bucket begins at 0; what lies above the last bound is given as that bound.
    """
    buckets = _buckets(grown, name)
    total = buckets[-1][1] if buckets else 0.0
    if not total:
        return {}
    return {percent: _quantile(buckets, total * percent / 100) * scale for percent in PERCENTILES}


def _quantile(buckets: list[tuple[float, float]], rank: float) -> float:
    lower, below = 0.0, 0.0
    for bound, value in buckets:
        if value >= rank and value > below:
            return lower if bound == inf else lower + (bound - lower) * (rank - below) / (value - below)
        lower, below = bound, value
    return lower


def _buckets(grown: Reading, name: str) -> list[tuple[float, float]]:
    """Upper bounds, ascending, each with the count of all that lies below it."""
    return sorted((bound, value) for (sample, bound), value in grown.items() if sample == name)
