#!/usr/bin/env python3
"""Measures models on a GPU, or on the CPU: the bare model in a loop, then served, over batch sizes and workers.

Each model has random weights: BERT-base, ViT-base, ResNet-50, or tiny ones with --quick. It is run in fp32, fp16, bf16
and compiled. The daemon is started as a user would start it; closed-loop gRPC clients have a process of their own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpu import bare, clients, report
from benchmarks.gpu.gpu_memory import memory_per_worker
from benchmarks.gpu.models import (
    MODELS,
    OPTIMIZATIONS,
    PATIENCE_SECONDS,
    QUICK,
    Model,
    Optimization,
    Setup,
    pack_model,
    write_model,
)
from benchmarks.gpu.report import Row
from demo.daemon import Addresses, Daemon, DaemonFailed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from torchd_clients import Client, TorchdError

SPAWN = multiprocessing.get_context("spawn")
# Seed 003's advice: as many requests under way as batches have places, and as many waiting.
IN_FLIGHT_PER_PLACE = 2
BY_DEFAULT = {
    "gpu": ("fp32", "fp16", "bf16", "fp32-compiled", "fp16-compiled"),
    "cpu": ("fp32", "bf16", "fp32-compiled"),
}


class NoDevice(RuntimeError):
    """What was asked for is not what there is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run measures."""

    models: tuple[Model, ...]
    optimizations: tuple[Optimization, ...]
    setup: Setup
    batch_sizes: tuple[int, ...]
    workers: tuple[int, ...]
    requests: int
    # Requests in flight; 0 follows the batch size and the number of workers.
    concurrency: int
    delay_ms: int
    bare_seconds: float

    @property
    def steps(self) -> int:
        """How many measurements there will be, the bare models' included."""
        return len(self.models) * len(self.optimizations) * (1 + len(self.workers) * len(self.batch_sizes))

    def in_flight(self, batch_size: int, workers: int) -> int:
        """Requests in flight at one point of the table."""
        return self.concurrency or IN_FLIGHT_PER_PLACE * batch_size * workers


def main() -> int:
    """Measures, prints the table, writes the files that were asked for."""
    arguments = _parser().parse_args()
    console = Console(stderr=True)
    rows: list[Row] = []
    try:
        plan = _plan(arguments, arguments.device != "cpu" and _has_cuda())
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        ) as progress:
            for row in _measure(plan, progress, progress.add_task("starting", total=plan.steps)):
                rows.append(row)
                _write(rows, plan, arguments)  # what is measured stays, should the rest be cut short
    except (DaemonFailed, TorchdError, NoDevice) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for table in report.tables(rows):
        Console().print(table)
    failures = [row for row in rows if row.failure]
    for row in failures:
        print(f"{row.model} {row.optimization}, {row.workers} workers, batch {row.batch_size}: {row.failure}")
    if arguments.plot:
        report.plot(rows, arguments.plot)
    return 1 if len(failures) == len(rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="where the models run (%(default)s)")
    add("--quick", action="store_true", help="tiny models and few requests, to see that everything works")
    add("--models", nargs="+", choices=tuple(MODELS), default=["bert", "vit"], help="which models (bert vit)")
    add(
        "--optimizations",
        nargs="+",
        choices=tuple(OPTIMIZATIONS),
        help="which ways to run them (what the device suits)",
    )
    add("--batch-sizes", type=int, nargs="+", help="requests at most in one batch (1 4 8 16 32; --quick: 1 4)")
    add(
        "--workers",
        type=int,
        nargs="+",
        help="numbers of workers, all on the first GPU if there is one (1 2; --quick: 1)",
    )
    add("--requests", type=int, help="requests measured at each point (1000; --quick: 40)")
    add("--concurrency", type=int, default=0, help="requests in flight (twice the batch size times the workers)")
    add("--delay-ms", type=int, default=100, help="milliseconds a batch may wait to fill (%(default)s)")
    add("--bare-seconds", type=float, help="length of the bare model's loop (5; --quick: 0.2)")
    add("--compile-backend", default="inductor", help="backend of torch.compile (%(default)s)")
    add("--no-pin-memory", action="store_true", help="copy to the GPU from pageable memory, to compare")
    add("--json", type=Path, metavar="FILE", help="write every figure, and what it was measured with")
    add("--csv", type=Path, metavar="FILE", help="write every figure")
    add("--markdown", type=Path, metavar="FILE", help="write the table")
    add("--plot", type=Path, metavar="FILE.png", help="draw throughput against batch size; needs matplotlib")
    return parser


def _has_cuda() -> bool:
    # In a process of its own: torch, once here, would be in every measurement's way.
    with ProcessPoolExecutor(1, mp_context=SPAWN) as once:
        return once.submit(bare.has_cuda).result()


def _plan(arguments: argparse.Namespace, has_cuda: bool) -> Plan:
    """What the command line means on this machine."""
    if arguments.device == "cuda" and not has_cuda:
        raise NoDevice("torch sees no CUDA device here; --device cpu measures the same on the CPU")
    device_type = "gpu" if has_cuda and arguments.device != "cpu" else "cpu"
    quick = arguments.quick
    return Plan(
        models=tuple((QUICK if quick else MODELS)[name] for name in arguments.models),
        optimizations=tuple(OPTIMIZATIONS[name] for name in arguments.optimizations or BY_DEFAULT[device_type]),
        setup=Setup(device_type, arguments.compile_backend, not arguments.no_pin_memory),
        batch_sizes=tuple(arguments.batch_sizes or ((1, 4) if quick else (1, 4, 8, 16, 32))),
        workers=tuple(arguments.workers or ((1,) if quick else (1, 2))),
        requests=arguments.requests or (40 if quick else 1000),
        concurrency=arguments.concurrency,
        delay_ms=arguments.delay_ms,
        bare_seconds=arguments.bare_seconds or (0.2 if quick else 5.0),
    )


def _measure(plan: Plan, progress: Progress, task: TaskID) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as scratch:
        folder = Path(scratch)
        store = folder / "store"
        store.mkdir()
        with _daemon(folder, store, plan.setup) as daemon, ProcessPoolExecutor(1, mp_context=SPAWN) as client_process:
            addresses = daemon.wait_ready()
            for model in plan.models:
                for optimization in plan.optimizations:
                    name = f"{model.name} {optimization.name}"
                    progress.update(task, description=f"{name}, bare")
                    source = write_model(folder / "models", model, optimization, plan.setup)
                    archive = pack_model(source, store)
                    ceiling = _bare(source, model, plan)
                    progress.advance(task)
                    for workers in plan.workers:
                        for batch_size in plan.batch_sizes:
                            point = Row(
                                model=model.name,
                                device=ceiling.device,
                                concurrency=plan.in_flight(batch_size, workers),
                                requests=plan.requests,
                                workers=workers,
                                batch_size=batch_size,
                                payload_bytes=model.payload_bytes,
                                optimization=optimization.name,
                                bare_throughput=ceiling.throughput[batch_size],
                            )
                            progress.update(task, description=f"{name}, {workers} workers, batch {batch_size}")
                            yield _served(point, source.name, archive, model, plan, addresses, client_process)
                            progress.advance(task)
            daemon.stop()


def _bare(source: Path, model: Model, plan: Plan) -> bare.Ceiling:
    # Its process, and with it its memory on the device, is gone before the model is served.
    with ProcessPoolExecutor(1, mp_context=SPAWN) as once:
        return once.submit(bare.measure, source, model.payload(), plan.batch_sizes, plan.bare_seconds).result()


def _daemon(folder: Path, store: Path, setup: Setup) -> Daemon:
    any_free_port = [
        word
        for name in ("grpc-inference", "grpc-management", "inference", "management", "metrics")
        for word in (f"--{name}-port", "0")
    ]
    command = ["--model-store", str(store), "--no-token-auth", *any_free_port]
    return Daemon(command, run_dir=folder / "run", log=folder / "log")


def _served(
    point: Row,
    name: str,
    archive: str,
    model: Model,
    plan: Plan,
    addresses: Addresses,
    client_process: ProcessPoolExecutor,
) -> Row:
    """Registers the model for one point of the table, measures it, and removes it."""
    payload, address = model.payload(), addresses.grpc_inference
    with Client(address, addresses.grpc_management, worker_timeout=PATIENCE_SECONDS) as client:
        try:
            client.register(
                archive,
                model_name=name,
                initial_workers=point.workers,
                batch_size=point.batch_size,
                max_batch_delay=plan.delay_ms,
                timeout=PATIENCE_SECONDS,
            )
            where = client_process.submit(clients.describe, address, name, payload).result()
            _check_device(where["device"], plan.setup)
            # Every size of batch is compiled, every buffer grown, before the clock runs.
            client_process.submit(
                clients.send, address, name, payload, point.concurrency, 4 * point.concurrency
            ).result()
            load = client_process.submit(
                clients.send, address, name, payload, point.concurrency, point.requests
            ).result()
            pids = {worker.pid for version in client.describe(name) for worker in version.workers}
            where = client_process.submit(clients.describe, address, name, payload).result()
            return replace(
                point,
                throughput=load.throughput,
                p50_ms=load.percentile_ms(0.5),
                p99_ms=load.percentile_ms(0.99),
                memory_mb=memory_per_worker(pids) or where.get("reserved_mb"),
            )
        except TorchdError as error:  # such as memory that does not suffice for one worker more
            return replace(point, failure=f"{type(error).__name__}: {error}")
        finally:
            if any(summary.model_name == name for summary in client.list()):
                client.unregister(name)


def _check_device(found: str, setup: Setup) -> None:
    wanted = {"gpu": "cuda", "cpu": "cpu"}[setup.device_type]
    if found != wanted:
        raise NoDevice(f"the model was to be served on {wanted}, and its worker has it on {found}")


def _write(rows: Sequence[Row], plan: Plan, arguments: argparse.Namespace) -> None:
    if arguments.json:
        setup = {
            "device_type": plan.setup.device_type,
            "compile_backend": plan.setup.compile_backend,
            "pin_memory": plan.setup.pin_memory,
            "delay_ms": plan.delay_ms,
            "quick": arguments.quick,
            "machine": platform.machine(),
            "python": platform.python_version(),
        }
        arguments.json.write_text(json.dumps({"setup": setup, "rows": report.document(rows)}, indent=2) + "\n")
    if arguments.csv:
        arguments.csv.write_text(report.csv_text(rows))
    if arguments.markdown:
        arguments.markdown.write_text(report.markdown(rows))


if __name__ == "__main__":
    sys.exit(main())
