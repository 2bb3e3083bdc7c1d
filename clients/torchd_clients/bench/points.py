"""Points as a JSON document, for other programs and for comparing two runs.

Latencies are written as [milliseconds, count] pairs of four significant digits: a percentile read back is right to
0.05 %, and a million answers take no more than some thousand pairs.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from torchd_clients.bench.measurement import Measurement, Point, ServerFigures, Usage

FORMAT = 1
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


class PointsInvalid(ValueError):
    """The document has no points in it that we could read."""


def write_points(path: Path, points: Sequence[Point], about: Mapping[str, str]) -> None:
    """Writes them; `about` says of the run what the points do not: when, where, by which command."""
    document = {"format": FORMAT, "about": dict(about), "points": [_point(point) for point in points]}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_points(path: Path) -> tuple[Point, ...]:
    """Reads what `write_points` wrote. Raises PointsInvalid, OSError."""
    try:
        return tuple(_read_point(one) for one in _document(path)["points"])
    except (LookupError, TypeError, ValueError) as error:
        raise PointsInvalid(f"{path} has no points of `torchd bench --json`: {error}") from error


def read_about(path: Path) -> dict[str, str]:
    """What `write_points` was told about the run."""
    try:
        return {str(name): str(value) for name, value in _document(path)["about"].items()}
    except (LookupError, AttributeError, ValueError) as error:
        raise PointsInvalid(f"{path} has no points of `torchd bench --json`: {error}") from error


def _document(path: Path) -> Any:
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise PointsInvalid(f"{path} is not of format {FORMAT}")
    return document


def _point(point: Point) -> dict[str, Any]:
    setting = {name: getattr(point, name) for name in _SETTING}
    return {
        **setting,
        "measurement": _measurement(point.measurement),
        "repeats": [_measurement(one) for one in point.repeats],
        "usage": {name: getattr(point.usage, name) for name in ("cpu_seconds", "memory_mib", "processes")},
        "server": {
            **{name: getattr(point.server, name) for name in ("queue_ms", "worker_ms", "mean_batch")},
            "batch_sizes": _pairs(point.server.batch_sizes),
            "queue_times_ms": _pairs(point.server.queue_times_ms),
            "queue_percentiles_ms": sorted(point.server.queue_percentiles_ms.items()),
            "worker_percentiles_ms": sorted(point.server.worker_percentiles_ms.items()),
        },
    }


_SETTING = (
    *("model", "protocol", "device", "workers", "batch_size", "batch_delay_ms", "clients", "rate", "optimization"),
    *("input", "threads"),
)


def _measurement(one: Measurement) -> dict[str, Any]:
    counts = Counter(float(f"{value:.4g}") for value in one.latencies_ms)
    return {
        # For people and small scripts; read back they are made anew.
        "throughput": round(one.throughput, 3),
        "mean_ms": round(one.mean_ms, 4),
        "percentiles_ms": {f"{percent:g}": round(one.percentile_ms(percent), 4) for percent in PERCENTILES},
        "seconds": one.seconds,
        "errors": dict(one.errors),
        "client_cpu_seconds": one.client_cpu_seconds,
        "client_processes": one.client_processes,
        "latencies_ms": sorted(counts.items()),
    }


def _pairs(histogram: Mapping[float, int]) -> list[tuple[float | None, int]]:
    return [(None if bound == inf else bound, count) for bound, count in sorted(histogram.items())]


def _read_point(one: Mapping[str, Any]) -> Point:
    server = one["server"]
    return Point(
        **{name: one[name] for name in _SETTING},
        measurement=_read_measurement(one["measurement"]),
        repeats=tuple(_read_measurement(repeat) for repeat in one["repeats"]),
        usage=Usage(**one["usage"]),
        server=ServerFigures(
            queue_ms=server["queue_ms"],
            worker_ms=server["worker_ms"],
            mean_batch=server["mean_batch"],
            batch_sizes=_read_pairs(server["batch_sizes"]),
            queue_times_ms=_read_pairs(server["queue_times_ms"]),
            # Not in documents of before the report.
            queue_percentiles_ms=dict(server.get("queue_percentiles_ms", ())),
            worker_percentiles_ms=dict(server.get("worker_percentiles_ms", ())),
        ),
    )


def _read_measurement(one: Mapping[str, Any]) -> Measurement:
    latencies = array("d")
    for value, count in one["latencies_ms"]:
        latencies.extend(array("d", [value]) * count)
    return Measurement(
        seconds=one["seconds"],
        latencies_ms=latencies,
        errors={str(reason): int(count) for reason, count in one["errors"].items()},
        client_cpu_seconds=one["client_cpu_seconds"],
        client_processes=one["client_processes"],
    )


def _read_pairs(pairs: Sequence[Sequence[Any]]) -> dict[float, int]:
    return {inf if bound is None else float(bound): int(count) for bound, count in pairs}
