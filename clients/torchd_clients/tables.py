"""What `torchd models` and `torchd describe` show a person."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from rich.console import Console, Group, RenderableType
from rich.table import Table

from torchd_protos.management_pb2 import (
    DeviceReference,
    FailureDescription,
    ModelDescription,
    ModelState,
    OptimizationDescription,
    OptimizationOption,
    WorkerDescription,
    WorkerState,
)

_WIDTH_OF_A_PIPE = 160


def console() -> Console:
    """Standard output; what the daemon says is text there, never markup."""
    width = None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE
    return Console(width=width, markup=False, highlight=False, emoji=False)


def printable(text: str) -> str:
    """The text without control characters: a handler's message must not write to the terminal's title."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def models_table(models: Iterable[ModelDescription]) -> Table:
    """One row for each version of each model."""
    table = Table("model", "version", "default", "state", "workers", "batch", "queue")
    table.add_column("last failure", overflow="ellipsis", no_wrap=True)
    for model in models:
        table.add_row(
            printable(model.model_name),
            printable(model.model_version),
            "yes" if model.is_default else "",
            _label(ModelState, model.state, "MODEL_STATE_"),
            _workers(model),
            str(model.batch_size),
            _queue(model),
            _first_line(model.last_failure) if model.HasField("last_failure") else "",
        )
    return table


def description(model: ModelDescription) -> Group:
    """Everything about one version: settings, workers, last failure."""
    shown: list[RenderableType] = [_settings(model)]
    if model.workers:
        shown.append(_workers_table(model.workers))
    if model.HasField("optimization"):
        shown.append(_optimization(model.optimization))
    if model.HasField("last_failure"):
        shown.append(_failure(model.last_failure))
    return Group(*shown)


def _settings(model: ModelDescription) -> Table:
    grid = Table(show_header=False, box=None, title_justify="left")
    grid.title = f"{printable(model.model_name)} {printable(model.model_version)}"
    rows = {
        "state": _label(ModelState, model.state, "MODEL_STATE_"),
        "default": "yes" if model.is_default else "no",
        "archive": model.model_url,
        "runtime": model.runtime,
        "device": model.device_type,
        "workers": f"{_workers(model)} ready (at most {model.max_workers})",
        "batch": f"{model.batch_size}, waits {model.max_batch_delay} ms {model.batch_wait}".rstrip(),
        "queue": _queue(model),
        "response timeout": f"{model.response_timeout} s",
        "startup timeout": f"{model.startup_timeout} s",
    }
    for name, value in rows.items():
        grid.add_row(name, printable(value))
    return grid


def _workers_table(workers: Iterable[WorkerDescription]) -> Table:
    table = Table("worker", "state", "pid", "memory", "devices", "threads", "running", "started", "progress")
    for worker in workers:
        table.add_row(
            printable(worker.id),
            _label(WorkerState, worker.state, "WORKER_STATE_"),
            str(worker.pid or ""),
            f"{worker.memory_usage / 2**20:.0f} MiB" if worker.memory_usage else "",
            _devices(worker.devices),
            str(worker.threads or ""),
            str(worker.running_requests),
            printable(worker.start_time),
            printable(worker.progress),
        )
        for rank in worker.ranks if len(worker.ranks) > 1 else ():
            table.add_row(
                f"  rank {rank.rank}",
                _label(WorkerState, rank.state, "WORKER_STATE_"),
                str(rank.pid or ""),
                "",
                _devices(rank.devices),
                *[""] * 3,
                printable(rank.progress),
            )
    return table


def _optimization(optimization: OptimizationDescription) -> Group:
    table = Table("optimize", "asked for", "applied", "how, or why not", "difference / deviation", "equal top-1")
    for option in optimization.options:
        table.add_row(
            printable(option.name),
            printable(option.asked),
            "yes" if option.applied else "no",
            printable(option.detail),
            *_difference(option),
        )
    notes = [f"warning: {warning}" for warning in optimization.warnings]
    if optimization.unchecked:
        notes.append(f"answers not checked: {optimization.unchecked}")
    return Group(table, *map(printable, notes))


def _difference(option: OptimizationOption) -> tuple[str, str]:
    if not option.HasField("difference"):
        return "", ""
    found = option.difference
    top1 = f"{found.equal_top1:.1%}" if found.HasField("equal_top1") else ""
    if top1 and not found.top1_judged:
        top1 += f" (of {found.inputs}: not judged)"
    return f"{found.max_difference:.3g} / {found.standard_deviation:.3g} = {found.ratio:.3g}", top1


def _devices(devices: Iterable[DeviceReference]) -> str:
    return printable(", ".join(f"{device.device_type} {device.index}" for device in devices))


def _failure(failure: FailureDescription) -> str:
    lines = [f"last failure: worker {failure.worker_id} at {failure.time}: {failure.kind}: {failure.message}"]
    if failure.traceback:
        lines.append(failure.traceback.rstrip())
    if failure.stderr:
        lines += ["last lines on its standard error:", *(f"  {line}" for line in failure.stderr)]
    return printable("\n".join(lines))


def _first_line(failure: FailureDescription) -> str:
    return printable(f"{failure.kind}: {failure.message}".partition("\n")[0])


def _workers(model: ModelDescription) -> str:
    ready = sum(worker.state == WorkerState.WORKER_STATE_READY for worker in model.workers)
    return f"{ready}/{model.min_workers}"


def _queue(model: ModelDescription) -> str:
    return f"{model.pending_requests}/{model.pending_requests + model.remaining_capacity}"


def _label(kind: EnumTypeWrapper, value: int, prefix: str) -> str:
    if value not in kind.values():  # from a later daemon
        return str(value)
    return kind.Name(value).removeprefix(prefix).lower().replace("_", " ")
