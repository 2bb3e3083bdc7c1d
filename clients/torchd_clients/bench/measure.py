"""One point: a load asked several times of a server in one setting, with what the server used and said meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torchd_clients.bench.figures import Reading, between
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


class _Watch:
    """What the server uses and says from when it is measured on, its warm-up left out."""

    def __init__(self, server: Server, target: Target) -> None:
        self._server = server
        self._target = target
        self._phase = ""
        self._begin()

    def hear(self, progress: Progress) -> None:
        """Begins anew with each load that begins to count: the last one is kept."""
        if progress.phase == "measuring" != self._phase:
            self._begin()
        self._phase = progress.phase

    def read(self) -> tuple[Usage, ServerFigures]:
        """Since then."""
        usage = self._meter.read() if self._server.pid else Usage()
        return usage, between(self._before, self._metrics())

    def _begin(self) -> None:
        self._before, self._meter = self._metrics(), UsageMeter(self._server.pid)

    def _metrics(self) -> Reading:
        return self._server.metrics_of(self._target.model, self._target.version)


def measure_point(
    server: Server, target: Target, load: Load, repeats: int, input_name: str, on_progress: OnRepeat | None = None
) -> Point:
    """Asks the load `repeats` times; the one of median throughput stands for all. Raises BenchError."""
    described = server.describe(target.model, target.version)
    runs = []
    for number in range(1, repeats + 1):
        watch = _Watch(server, target)

        def tell(progress: Progress, number: int = number, watch: _Watch = watch) -> None:
            watch.hear(progress)
            if on_progress is not None:
                on_progress(number, progress)

        measured = run_load(target, load, tell)
        runs.append(_Repeat(measured, *watch.read()))
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
