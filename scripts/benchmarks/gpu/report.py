"""The rows of scripts/bench_gpu.py and every form they are shown in; the first columns are those of TorchServe's."""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

COLUMNS = (
    "Model",
    "Device",
    "Concurrency",
    "#Requests",
    "#workers",
    "Batch size",
    "Payload",
    "Optimization",
    "Throughput",
    "Latency P99 (ms)",
    "Bare model",
    "Served/bare",
    "MB/worker",
)


_NARROW = (
    "wor-\nkers",
    "batch\nsize",
    "concur-\nrency",
    "re-\nquests",
    "through-\nput",
    "P99\nms",
    "bare\nmodel",
    "served\n/bare",
    "MB per\nworker",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One model, run in one way, with one size of batch and one number of workers. `failure` says why there is none."""

    model: str
    device: str
    concurrency: int
    requests: int
    workers: int
    batch_size: int
    payload_bytes: int
    optimization: str
    # Items per second of the bare model in one process, with the same batch.
    bare_throughput: float
    throughput: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    # Of the GPU; None where that is not known.
    memory_mb: int | None = None
    failure: str = ""

    @property
    def ratio(self) -> float:
        """What serving leaves of the bare model; over 1 where several workers fill what one leaves idle."""
        return self.throughput / self.bare_throughput

    def measured(self) -> tuple[str, ...]:
        """What was measured, as text: the last five of COLUMNS."""
        bare = f"{self.bare_throughput:.1f}"
        if self.failure:
            return ("failed", "-", bare, "-", "-")
        memory = "-" if self.memory_mb is None else str(self.memory_mb)
        return (f"{self.throughput:.1f}", f"{self.p99_ms:.1f}", bare, f"{self.ratio:.2f}", memory)

    def cells(self) -> tuple[str, ...]:
        """The row as text, one for each of COLUMNS."""
        numbers = (self.concurrency, self.requests, self.workers, self.batch_size)
        first = (self.model, self.device, *map(str, numbers), _size(self.payload_bytes), self.optimization)
        return first + self.measured()


def document(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The rows for JSON, every figure in full."""
    return [asdict(row) | {"ratio": row.ratio} for row in rows]


def csv_text(rows: Sequence[Row]) -> str:
    """The rows of `document` as CSV."""
    text = io.StringIO()
    told = document(rows)
    writer = csv.DictWriter(text, told[0].keys() if told else ())
    writer.writeheader()
    writer.writerows(told)
    return text.getvalue()


def markdown(rows: Sequence[Row]) -> str:
    """The table for a page."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables(rows: Sequence[Row]) -> Iterator[Table]:
    """A table for each model, narrow enough for a terminal: what all its rows share is its title."""
    for model in dict.fromkeys(row.model for row in rows):
        shown = [row for row in rows if row.model == model]
        title = f"{model} on {shown[0].device}, {_size(shown[0].payload_bytes)} per request; in requests per second"
        table = Table(title=title, box=SIMPLE_HEAD, padding=0)
        table.add_column("Optimization")
        for name in _NARROW:
            table.add_column(name, justify="right")
        for row in shown:
            table.add_row(
                row.optimization,
                *map(str, (row.workers, row.batch_size, row.concurrency, row.requests)),
                *row.measured(),
            )
        yield table


def plot(rows: Sequence[Row], path: Path) -> None:
    """Throughput against the size of the batch: a diagram for each model, a line for each way and number of workers."""
    pyplot = importlib.import_module("matplotlib.pyplot")
    measured = [row for row in rows if not row.failure]
    names = list(dict.fromkeys(row.model for row in measured))
    figure, axes = pyplot.subplots(1, max(1, len(names)), figsize=(7 * max(1, len(names)), 5), squeeze=False)
    for axis, name in zip(axes[0], names, strict=False):
        lines: dict[tuple[str, int], list[Row]] = {}
        for row in measured:
            if row.model == name:
                lines.setdefault((row.optimization, row.workers), []).append(row)
        for (optimization, workers), points in lines.items():
            sizes = [row.batch_size for row in points]
            [line] = axis.plot(sizes, [row.throughput for row in points], "o-", label=f"{optimization}, {workers} w.")
            if workers == min(row.workers for row in measured):
                axis.plot(sizes, [row.bare_throughput for row in points], "--", color=line.get_color(), alpha=0.5)
        axis.set(title=f"{name} (dashed: the bare model)", xlabel="batch size", ylabel="answers per second", ylim=0)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)


def _size(count: int) -> str:
    return f"{count} B" if count < 1024 else f"{count / 1024:.0f} KB"
