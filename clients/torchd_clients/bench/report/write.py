"""Writes a report into a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torchd_clients.bench.points import write_points
from torchd_clients.bench.report import ab_report, markdown, page
from torchd_clients.bench.report.rows import Row, points_of

POINTS = "bench.json"
LATENCY, THROUGHPUT = "latency.png", "throughput.png"


def write_report(folder: Path, rows: Sequence[Row], about: Mapping[str, str]) -> list[Path]:
    """Writes the points, TorchServe's two files, the pictures and the page; gives what was written, the page last.

    Nothing was measured: there is nothing to draw, and the pictures are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_points(folder / POINTS, points_of(rows), about)
    ab_report.write_ab_report(folder / ab_report.FILE, rows)
    markdown.write_markdown(folder / markdown.FILE, rows, about)
    pictures = _pictures(folder, rows) if any(point.measurement.answered for point in points_of(rows)) else {}
    page.write_page(folder / page.FILE, rows, about, pictures)
    drawn = [LATENCY, THROUGHPUT] if pictures else []
    return [folder / name for name in (POINTS, ab_report.FILE, markdown.FILE, *drawn, page.FILE)]


def _pictures(folder: Path, rows: Sequence[Row]) -> dict[str, tuple[bytes, bytes]]:
    # Imported here: matplotlib is slow to import, and asked for by an extra.
    from torchd_clients.bench.report import plots

    pictures = {}
    for name, heading, draw in (
        (LATENCY, "Latency", plots.latencies),
        (THROUGHPUT, "Throughput", plots.throughput),
    ):
        light = draw(rows, plots.LIGHT)
        (folder / name).write_bytes(light)
        pictures[heading] = (light, draw(rows, plots.DARK))
    return pictures
