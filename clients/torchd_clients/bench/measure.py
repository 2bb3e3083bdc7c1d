"""One point: a load asked several times of a server in one setting, with what the server used and said meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torchd_clients.bench.figures import between
from torchd_clients.bench.load import Load
from torchd_clients.bench.measurement import Measurement, Point, ServerFigures, Usage
from torchd_clients.bench.run import Progress, run_load
from torchd_clients.bench.server import Server
from torchd_clients.bench.target import Target
from torchd_clients.bench.usage import UsageMeter

# The number of the repeat, from 1, and how far it is.
OnRepeat = Callable[[int, Progress], None]


@dataclass(frozen=True, slots=True)
class _Repeat:
    measurement: Measurement
    usage: Usage
    figures: ServerFigures


def measure_point(
    server: Server, target: Target, load: Load, repeats: int, input_name: str, on_progress: OnRepeat | None = None
) -> Point:
    """Asks the load `repeats` times; the one of median throughput stands for all. Raises BenchError."""
    described = server.describe(target.model, target.version)
    runs = []
    for number in range(1, repeats + 1):

        def tell(progress: Progress, number: int = number) -> None:
            if on_progress is not None:
                on_progress(number, progress)

        before, meter = server.metrics_of(target.model, target.version), UsageMeter(server.pid)
        measured = run_load(target, load, tell)
        usage = meter.read() if server.pid else Usage()
        runs.append(_Repeat(measured, usage, between(before, server.metrics_of(target.model, target.version))))
    kept = median_run([run.measurement for run in runs])
    workers = described.get("workers", [])
    return Point(
        model=target.model,
        protocol=target.protocol,
        device=str(described.get("deviceType", "")),
        workers=len(workers) or _number(described, "minWorkers"),
        batch_size=_number(described, "batchSize"),
        batch_delay_ms=_number(described, "maxBatchDelay"),
        clients=load.clients,
        rate=load.rate,
        optimization=str(described.get("optimization", "")),
        input=input_name,
        measurement=runs[kept].measurement,
        repeats=tuple(run.measurement for run in runs),
        usage=runs[kept].usage,
        server=runs[kept].figures,
        threads=_number(workers[0], "threads") if workers else 0,
    )


def median_run(runs: Sequence[Measurement]) -> int:
    """Which of them has the median throughput; of an even number the lower one in the middle."""
    order = sorted(range(len(runs)), key=lambda number: runs[number].throughput)
    return order[(len(order) - 1) // 2]


def _number(described: Any, name: str) -> int:
    value = described.get(name, 0)
    return value if isinstance(value, int) else 0
