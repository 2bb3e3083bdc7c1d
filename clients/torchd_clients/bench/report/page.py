"""report.html: everything on one page that needs nothing else; in the reader's light or dark colours."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from torchd_clients.bench.report.ab_report import COLUMNS, NOTES, columns_of
from torchd_clients.bench.report.rows import Row, by_group
from torchd_clients.tables import printable

FILE = "report.html"
_STYLE = """\
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --soft: #59636e; --line: #d0d7de; --band: #f6f8fa;
  --bad: #b42318; --best: #0a6640; }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --ink: #e6edf3; --soft: #9198a1; --line: #3d444d;
  --band: #161b22; --bad: #ff8b7e; --best: #4ade9b; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 90rem; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; color: var(--soft); margin: 0; }
dd { margin: 0; color: var(--ink); overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { font-size: 13.5px; border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .55rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { background: var(--band); color: var(--soft); font-weight: 600; position: sticky; top: 0; }
td.text, th.text { text-align: left; } td.why { text-align: left; color: var(--soft); white-space: normal; }
tr:last-child td { border-bottom: 0; } .bad { color: var(--bad); } .best { color: var(--best); font-weight: 700; }
img { max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 8px; display: block; }
.note, li, summary { color: var(--soft); } ul { padding-left: 1.2rem; }
"""
_HEAD = ("over", "device", "workers", "batch", "delay, ms", "asked by", "answers", "errors", "per second", "all runs")
_TIMES = ("mean", "p50", "p90", "p99", "p99.9")
_SERVER = ("queue p50", "queue p99", "mean batch", "CPU, cores", "memory, MiB")
_TEXT_COLUMNS = 2


def write_page(
    path: Path, rows: Sequence[Row], about: Mapping[str, str], pictures: Mapping[str, tuple[bytes, bytes]]
) -> None:
    """Writes it. `pictures` has, by title, a PNG for light and one for dark colours."""
    path.write_text("\n".join(_lines(rows, about, pictures)) + "\n", encoding="utf-8")


def _lines(rows: Sequence[Row], about: Mapping[str, str], pictures: Mapping[str, tuple[bytes, bytes]]) -> Iterator[str]:
    name = _text(f"torchd bench: {', '.join(by_group(rows))}")
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{name}</title>\n<style>\n{_STYLE}</style></head><body>\n<h1>{name}</h1>"
    yield "<dl>" + "".join(f"<dt>{_text(key)}</dt><dd>{_about(key, value)}</dd>" for key, value in about.items())
    yield "</dl>"
    for group, members in by_group(rows).items():
        yield f"<h2>{_text(group)}</h2>"
        yield from _table(members)
        yield from _errors(members)
    yield (
        '<p class="note">Times in milliseconds. "All runs": throughput of each repeat; the row is the run of median '
        "throughput, the greatest throughput of each table is marked. Queue and batch by the daemon's own metrics; "
        "queue times are interpolated within buckets, of which the first ends at 0.5 ms. CPU and memory: of the daemon "
        "and its workers.</p>"
    )
    for heading, (light, dark) in pictures.items():
        yield f"<h2>{_text(heading)}</h2>\n{_picture(heading, light, dark)}"
    yield from _ab_columns(rows)
    yield "</body></html>"


def _table(rows: Sequence[Row]) -> Iterator[str]:
    heads = (*_HEAD, *_TIMES, *_SERVER)
    yield '<div class="wide"><table><thead><tr>'
    yield "".join(f"<th{_kind(number)}>{head}</th>" for number, head in enumerate(heads)) + "</tr></thead><tbody>"
    best = max((row.point.measurement.throughput for row in rows if row.point is not None), default=0.0)
    for row in rows:
        setting = [row.protocol, row.device, row.workers, row.batch_size, row.batch_delay_ms, row.asked]
        cells = "".join(f"<td{_kind(number)}>{_text(str(cell))}</td>" for number, cell in enumerate(setting))
        yield f"<tr>{cells}{_figures(row, best, len(heads) - len(setting))}</tr>"
    yield "</tbody></table></div>"


def _figures(row: Row, best: float, width: int) -> str:
    if row.point is None:
        return f'<td class="why" colspan="{width}">{_text(row.why)}</td>'
    kept, server, usage = row.point.measurement, row.point.server, row.point.usage
    failed = f'<span class="bad">{kept.failed}</span>' if kept.failed else "0"
    per_second = _number(kept.throughput)
    if kept.throughput == best > 0:
        per_second = f'<span class="best">{per_second}</span>'
    queue = [server.queue_percentiles_ms.get(percent) for percent in (50.0, 99.0)]
    cells = [
        str(kept.answered),
        failed,
        per_second,
        " ".join(_number(one.throughput) for one in row.point.repeats),
        f"{kept.mean_ms:.2f}",
        *(f"{kept.percentile_ms(percent):.2f}" for percent in (50, 90, 99, 99.9)),
        *("" if one is None else f"{one:.2f}" for one in queue),
        f"{server.mean_batch:.1f}" if server.mean_batch else "",
        f"{usage.cpu_seconds / kept.seconds:.2f}" if usage.processes and kept.seconds else "",
        f"{usage.memory_mib:.0f}" if usage.processes else "",
    ]
    return "".join(f"<td>{cell}</td>" for cell in cells)


def _errors(rows: Sequence[Row]) -> Iterator[str]:
    errors = [
        f"<li>{row.protocol}, {row.workers} workers, batch {row.batch_size}, {row.asked}: "
        f"{count} x {_text(reason)}</li>"
        for row in rows
        if row.point is not None
        for reason, count in row.point.measurement.errors.items()
    ]
    if errors:
        yield f'<ul class="bad">{"".join(errors)}</ul>'


def _picture(heading: str, light: bytes, dark: bytes) -> str:
    dark_source = f'<source media="(prefers-color-scheme: dark)" srcset="{_inline(dark)}">'
    return f'<picture>{dark_source}<img alt="{_text(heading)}" src="{_inline(light)}"></picture>'


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _ab_columns(rows: Sequence[Row]) -> Iterator[str]:
    yield "<h2>In the columns of TorchServe's benchmark suite</h2>"
    yield '<details><summary>ab_report.csv, and what its columns hold</summary><div class="wide"><table><thead><tr>'
    yield "".join(f'<th class="text">{_text(name)}</th>' for name in COLUMNS) + "</tr></thead><tbody>"
    for row in rows:
        told = columns_of(row)
        yield "<tr>" + "".join(f'<td class="text">{_text(told.get(name, ""))}</td>' for name in COLUMNS) + "</tr>"
    yield "</tbody></table></div><ul>" + "".join(f"<li>{_text(note)}</li>" for note in NOTES) + "</ul></details>"


def _about(key: str, value: str) -> str:
    return f"<code>{_text(value)}</code>" if key == "command" else _text(value)


def _kind(number: int) -> str:
    return ' class="text"' if number < _TEXT_COLUMNS else ""


def _text(text: str) -> str:
    return escape(printable(text))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
