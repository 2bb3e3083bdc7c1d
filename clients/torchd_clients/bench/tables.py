"""What was measured, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from torchd_clients.bench.measurement import Point
from torchd_clients.bench.report.rows import Row
from torchd_clients.bench.run import is_client_bound
from torchd_clients.tables import printable

_PERCENTILES = (50, 90, 99, 99.9)
_UNITS = "latencies and queue in ms; batch: mean size; CPU (cores), MiB: the server's processes"


def results(points: Iterable[Point]) -> RenderableType:
    """A row for each point, then what went wrong, and what the daemon itself says of batches and queues."""
    points = list(points)
    table = Table("", title=_title(points), title_justify="left", box=SIMPLE_HEAD, caption=_UNITS, pad_edge=False)
    table.caption_justify = "left"
    table.collapse_padding = True
    table.add_column("asked", no_wrap=True)
    latencies = [f"p{one:g}" for one in _PERCENTILES]
    for column in ("answers", "errors", "per s", "all runs", *latencies, "queue", "batch", "CPU", "MiB"):
        table.add_column(column, justify="right")
    for point in points:
        table.add_row(*_row(point))
    notes = [Text(note) for point in points for note in _notes(point)]
    return Group(table, *notes)


def suite_results(rows: Sequence[Row]) -> RenderableType:
    """A row for each setting of a suite, then what went wrong."""
    table = Table("model", "device", box=SIMPLE_HEAD, caption="latencies in ms; CPU (cores), MiB: the server's")
    table.caption_justify = "left"
    table.pad_edge = False
    for column in ("workers", "batch", "delay", "clients"):
        table.add_column(column, justify="right")
    table.add_column("over")
    for column in ("answers", "errors", "per s", "p50", "p90", "p99", "CPU", "MiB"):
        table.add_column(column, justify="right")
    for row in rows:
        setting = (row.group, row.device, row.workers, row.batch_size, row.batch_delay_ms, row.clients, row.protocol)
        table.add_row(*(printable(str(cell)) for cell in setting), *_suite_figures(row.point))
    missing = [(f"{row.group}, {row.device}", f"{row.workers}/{row.batch_size}", row.why) for row in rows if row.why]
    notes = []
    for name, why in dict.fromkeys((name, why) for name, _, why in missing):
        settings = ", ".join(one for other, one, reason in missing if (other, reason) == (name, why))
        notes.append(f"{name}, workers/batch {settings}: {why}")
    notes += [note for row in rows if row.point is not None for note in _notes(row.point)]
    return Group(table, *(Text(printable(note)) for note in notes))


def _suite_figures(point: Point | None) -> list[str]:
    if point is None:
        return ["-"] * 8
    kept = point.measurement
    shown = _row(point)
    latencies = [f"{kept.percentile_ms(percent):.2f}" for percent in (50, 90, 99)]
    return [str(kept.answered), str(kept.failed), _number(kept.throughput), *latencies, *shown[-2:]]


def histograms(points: Iterable[Point]) -> RenderableType:
    """How large the batches were, and how long requests waited, by the daemon's own count."""
    shown: list[RenderableType] = []
    for point in points:
        if not point.server.batch_sizes:
            continue
        table = Table("batch of at most", "batches", "waited at most, ms", "requests", title=_asked(point, long=True))
        table.title_justify = "left"
        sizes, waits = (sorted(one.items()) for one in (point.server.batch_sizes, point.server.queue_times_ms))
        for row in range(max(len(sizes), len(waits))):
            table.add_row(*_pair(sizes, row), *_pair(waits, row))
        shown.append(table)
    return Group(*shown)


def terminal() -> Console:
    """Standard output, as wide as it needs to be where it is no terminal."""
    from torchd_clients.tables import console

    return console()


def _title(points: list[Point]) -> str:
    if not points:
        return ""
    point = points[0]
    batch = f"batch {point.batch_size} / {point.batch_delay_ms} ms" if point.batch_size else "batch not told"
    parts = [point.model, point.device, f"{point.workers} workers", batch, point.input]
    return printable(", ".join(part for part in parts if part))


def _asked(point: Point, long: bool = False) -> str:
    asked = f"{point.rate:g}/s by at most {point.clients}" if point.rate else f"{point.clients} clients"
    return f"{point.protocol}, {asked}" if long else asked


def _row(point: Point) -> list[str]:
    kept = point.measurement
    return [
        point.protocol,
        _asked(point),
        str(kept.answered),
        str(kept.failed),
        _number(kept.throughput),
        " ".join(_number(one.throughput) for one in point.repeats),
        *(f"{kept.percentile_ms(percent):.2f}" for percent in _PERCENTILES),
        f"{point.server.queue_ms:.2f}" if point.server.batch_sizes else "",
        f"{point.server.mean_batch:.1f}" if point.server.mean_batch else "",
        f"{point.usage.cpu_seconds / kept.seconds:.2f}" if point.usage.processes and kept.seconds else "",
        f"{point.usage.memory_mib:.0f}" if point.usage.processes else "",
    ]


def _notes(point: Point) -> Iterable[str]:
    kept = point.measurement
    for reason, count in kept.errors.items():
        yield printable(f"{_asked(point, long=True)}: {count} x {reason}")
    if is_client_bound(kept):
        yield (
            f"{_asked(point, long=True)}: the clients used {kept.client_cpu_seconds / kept.seconds:.2f} cores in "
            f"{kept.client_processes} processes: they, not the server, were the bottleneck; see --processes"
        )


def _pair(rows: list[tuple[float, int]], row: int) -> tuple[str, str]:
    if row >= len(rows):
        return "", ""
    bound, count = rows[row]
    return ("more" if bound == inf else f"{bound:g}"), str(count)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
