"""Points of known figures."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from torchd_clients.bench.measurement import Measurement, Point, ServerFigures, Usage


def run(per_second: float, latencies_ms: Sequence[float] = (), errors: Mapping[str, int] | None = None) -> Measurement:
    """Good answers of these latencies (a hundred from 1 to 100 ms) at that rate."""
    latencies = array("d", sorted(latencies_ms or range(1, 101)))
    return Measurement(len(latencies) / per_second, latencies, errors or {})


def point(*runs: Measurement, **setting: Any) -> Point:
    """A point whose runs these are; the first one stands for all."""
    usual: dict[str, Any] = {
        "model": "eager_mode_m",
        "protocol": "rest",
        "device": "cpu",
        "workers": 2,
        "batch_size": 4,
        "batch_delay_ms": 100,
        "clients": 10,
        "rate": 0.0,
        "optimization": "",
        "input": "kitten.jpg",
        "measurement": runs[0],
        "repeats": runs,
        "usage": Usage(cpu_seconds=1.5, memory_mib=256.0, processes=3),
        "server": ServerFigures(
            queue_ms=3.5,
            worker_ms=12.5,
            mean_batch=3.0,
            batch_sizes={4.0: 34},
            queue_percentiles_ms={50.0: 2.0, 90.0: 4.5, 99.0: 8.0},
            worker_percentiles_ms={50.0: 11.0, 90.0: 14.0, 99.0: 20.25},
        ),
    }
    return Point(**usual | setting)
