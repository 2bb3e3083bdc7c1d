#!/usr/bin/env python3
"""Compares the two ways a batch waits, full and adaptive, side by side: throughput and latency over concurrency.

Both serve the same model in one daemon. Each point is measured in rounds that take turns, by closed-loop gRPC clients
in a process of their own. Ends with exit code 1 where adaptive has less throughput than full by more than the tolerance
and the noise, which is how far the rounds of one point lie apart.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
import yaml
from demo import batching_handler
from demo.daemon import Daemon, DaemonFailed
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from torchd_archiver.packing import PackRequest, pack
from torchd_clients import AsyncClient, Client, TorchdError

WAITS = ("full", "adaptive")
WARM_UP_SECONDS = 0.3
REQUEST_SECONDS = 60.0
BODY = b"request"


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement: answers per second, and the latency of each in seconds."""

    throughput: float
    latencies: list[float]


@dataclass(frozen=True, slots=True)
class Point:
    """One way of waiting at one concurrency: medians over the rounds."""

    throughput: float
    p50_ms: float
    p99_ms: float
    noise: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both ways at one concurrency."""

    workers: int
    concurrency: int
    full: Point
    adaptive: Point

    @property
    def throughput_ratio(self) -> float:
        """Adaptive over full: more is better."""
        return self.adaptive.throughput / self.full.throughput

    @property
    def p50_ratio(self) -> float:
        """Adaptive over full: less is better."""
        return self.adaptive.p50_ms / self.full.p50_ms

    @property
    def noise(self) -> float:
        """How far the rounds of one point lie apart, as a part of their median."""
        return max(self.full.noise, self.adaptive.noise)

    def is_worse(self, tolerance: float) -> bool:
        """Whether adaptive loses throughput by more than the tolerance and the noise."""
        return self.throughput_ratio < 1 - max(tolerance, self.noise)


def main() -> int:
    """Measures every point and prints the comparison."""
    arguments = _parser().parse_args()
    try:
        comparisons = list(_compare(arguments))
    except (DaemonFailed, TorchdError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _print_tables(comparisons, arguments)
    if arguments.json:
        rows = [
            asdict(row) | {"throughput_ratio": row.throughput_ratio, "p50_ratio": row.p50_ratio} for row in comparisons
        ]
        arguments.json.write_text(json.dumps({"settings": _settings(arguments), "points": rows}, indent=2) + "\n")
    if arguments.plot:
        _plot(comparisons, arguments.plot)
    worse = [row for row in comparisons if row.is_worse(arguments.tolerance)]
    for row in worse:
        print(
            f"adaptive is slower: {_count(row.workers)}, {row.concurrency} clients, {row.throughput_ratio:.2f} of full"
        )
    return 1 if worse else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", choices=tuple(batching_handler.COSTS), default="sleep", help="what a batch does (%(default)s)")
    add("--batch-ms", type=float, default=10.0, help="sleep: milliseconds per batch (%(default)s)")
    add("--item-ms", type=float, default=1.0, help="sleep: milliseconds per item on top (%(default)s)")
    add("--batch-size", type=int, default=8, help="requests at most in one batch (%(default)s)")
    add("--delay-ms", type=int, default=20, help="milliseconds a batch may wait to fill (%(default)s)")
    add("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers (1 2)")
    add("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="numbers of clients (1 to 64)")
    add("--seconds", type=float, default=2.0, help="length of one round (%(default)s)")
    add("--rounds", type=int, default=3, help="rounds per point (%(default)s)")
    add("--tolerance", type=float, default=0.05, help="throughput that adaptive may lose (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every figure to this file")
    add("--plot", type=Path, metavar="FILE.png", help="draw the curves; needs matplotlib")
    return parser


def _settings(arguments: argparse.Namespace) -> dict[str, object]:
    return {name: value for name, value in vars(arguments).items() if not isinstance(value, Path)}


def _compare(arguments: argparse.Namespace) -> Iterator[Comparison]:
    spawn = multiprocessing.get_context("spawn")
    steps = len(arguments.workers) * len(arguments.concurrency) * arguments.rounds * len(WAITS)
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(1, mp_context=spawn) as clients,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task("measuring", total=steps)
        for workers in arguments.workers:
            with _daemon(Path(scratch) / str(workers), workers, arguments) as daemon:
                address = daemon.wait_ready().grpc_inference
                for wait in WAITS:
                    clients.submit(_wait_loaded, address, wait).result()
                for concurrency in arguments.concurrency:
                    rounds: dict[str, list[Round]] = {wait: [] for wait in WAITS}
                    for wait in WAITS * arguments.rounds:
                        rounds[wait].append(_measure(clients, address, wait, concurrency, arguments.seconds))
                        progress.advance(task)
                    yield Comparison(workers, concurrency, *(_point(rounds[wait]) for wait in WAITS))
                daemon.stop()


def _daemon(folder: Path, workers: int, arguments: argparse.Namespace) -> Daemon:
    folder.mkdir()
    for wait in WAITS:
        _pack(folder, wait, workers, arguments)
    any_free_port = [
        word
        for name in ("grpc-inference", "grpc-management", "inference", "management", "metrics")
        for word in (f"--{name}-port", "0")
    ]
    models = [f"{wait}={wait}.mar" for wait in WAITS]
    command = ["--model-store", str(folder), "--models", *models, "--no-token-auth", *any_free_port]
    return Daemon(command, run_dir=folder / "run", log=folder / "log")


def _pack(folder: Path, wait: str, workers: int, arguments: argparse.Namespace) -> None:
    config = folder / f"{wait}.yaml"
    settings = {
        "minWorkers": workers,
        "maxWorkers": workers,
        "batchSize": arguments.batch_size,
        "maxBatchDelay": arguments.delay_ms,
        "batchWait": wait,
        "jobQueueSize": 1000,
        "workerThreads": 1,
        "handler": {"kind": arguments.model, "batch_ms": arguments.batch_ms, "item_ms": arguments.item_ms},
    }
    config.write_text(yaml.safe_dump(settings))
    handler = batching_handler.__file__
    pack(PackRequest(model_name=wait, version="1.0", handler=handler, config_file=config, export_path=folder))


def _measure(clients: Executor, address: str, model: str, concurrency: int, seconds: float) -> Round:
    return clients.submit(_load, address, model, concurrency, seconds).result()


def _wait_loaded(address: str, model: str) -> None:
    """In the clients' process: one answered request."""
    with Client(address) as client:
        client.predict(model, BODY, timeout=REQUEST_SECONDS)


def _load(address: str, model: str, concurrency: int, seconds: float) -> Round:
    """In the clients' process: so many clients, each sending its next request when it has its answer."""
    return uvloop.run(_closed_loop(address, model, concurrency, seconds))


async def _closed_loop(address: str, model: str, concurrency: int, seconds: float) -> Round:
    latencies: list[float] = []
    async with AsyncClient(address) as client:
        begin = time.perf_counter() + WARM_UP_SECONDS
        end = begin + seconds

        async def loop() -> None:
            sent = time.perf_counter()
            while sent < end:
                answer = await client.predict(model, BODY, timeout=REQUEST_SECONDS)
                now = time.perf_counter()
                if answer != BODY:
                    raise DaemonFailed(f"{model} answered {answer[:100]!r} instead of {BODY!r}")
                if begin <= now < end:
                    latencies.append(now - sent)
                sent = now

        await asyncio.gather(*(loop() for _ in range(concurrency)))
    return Round(len(latencies) / seconds, latencies)


def _point(rounds: Sequence[Round]) -> Point:
    throughputs = [each.throughput for each in rounds]
    latencies = sorted(1000 * latency for each in rounds for latency in each.latencies)
    if not latencies:
        raise DaemonFailed("no answer within a round; give --seconds more")
    median = statistics.median(throughputs)
    return Point(
        throughput=median,
        p50_ms=latencies[len(latencies) // 2],
        p99_ms=latencies[len(latencies) * 99 // 100],
        noise=(max(throughputs) - min(throughputs)) / median,
    )


def _print_tables(comparisons: list[Comparison], arguments: argparse.Namespace) -> None:
    """One table per number of workers, so that it fits into 80 columns."""
    cost = f", {arguments.batch_ms:g} ms + {arguments.item_ms:g} ms per item" if arguments.model == "sleep" else ""
    waits = f"batches of {arguments.batch_size}, delay {arguments.delay_ms} ms"
    for workers in arguments.workers:
        rows = [row for row in comparisons if row.workers == workers]
        Console().print(_table(f"{_count(workers)}; {arguments.model}{cost}; {waits}", rows))


def _table(title: str, rows: list[Comparison]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=0)
    pairs = [f"{unit}\n{wait}" for unit in ("req/s", "p50 ms", "p99 ms") for wait in WAITS]
    for header in ("clients", *pairs, "req/s\nratio", "p50\nratio", "noise"):
        table.add_column(header, justify="right")
    for row in rows:
        points = (row.full, row.adaptive)
        table.add_row(
            str(row.concurrency),
            *(f"{point.throughput:.0f}" for point in points),
            *(f"{point.p50_ms:.1f}" for point in points),
            *(f"{point.p99_ms:.1f}" for point in points),
            *(f"{figure:.2f}" for figure in (row.throughput_ratio, row.p50_ratio, row.noise)),
        )
    return table


def _count(workers: int) -> str:
    return f"{workers} worker{'s' * (workers > 1)}"


def _plot(comparisons: list[Comparison], path: Path) -> None:
    """One row of diagrams per number of workers: throughput, and the median and 99th percentile of the latency."""
    pyplot = importlib.import_module("matplotlib.pyplot")
    numbers = sorted({row.workers for row in comparisons})
    figure, axes = pyplot.subplots(len(numbers), 2, figsize=(11, 4 * len(numbers)), squeeze=False)
    for (left, right), workers in zip(axes, numbers, strict=True):
        rows = [row for row in comparisons if row.workers == workers]
        concurrency = [row.concurrency for row in rows]
        for wait, colour in zip(WAITS, ("tab:orange", "tab:blue"), strict=True):
            points: list[Point] = [getattr(row, wait) for row in rows]
            left.plot(concurrency, [point.throughput for point in points], "o-", color=colour, label=wait)
            right.plot(concurrency, [point.p50_ms for point in points], "o-", color=colour, label=f"{wait} p50")
            right.plot(concurrency, [point.p99_ms for point in points], "o--", color=colour, label=f"{wait} p99")
        for axis, label in ((left, "requests per second"), (right, "latency, ms")):
            axis.set(xlabel="clients", ylabel=label, title=_count(workers), xscale="log", xticks=concurrency)
            axis.set_xticklabels(concurrency)
            axis.legend()
    figure.tight_layout()
    figure.savefig(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
