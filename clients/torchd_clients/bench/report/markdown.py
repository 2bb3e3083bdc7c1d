"""report.md: a table for each model, in the columns of TorchServe's benchmark suite behind the version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torchd_clients.bench.report.ab_report import COLUMNS, NOTES, columns_of
from torchd_clients.bench.report.rows import Row, by_group

FILE = "report.md"


def write_markdown(path: Path, rows: Sequence[Row], about: Mapping[str, str]) -> None:
    """Writes it; `about` has what was run, when, where and in which version."""
    path.write_text("\n".join(_lines(rows, about)) + "\n", encoding="utf-8")


def _lines(rows: Sequence[Row], about: Mapping[str, str]) -> Iterator[str]:
    hardware = ", ".join(dict.fromkeys(row.device for row in rows if not row.is_skipped))
    version = about.get("version", "")
    yield from (f"# torchd bench on {hardware}", "", f"Date: {about.get('when', '')}", "")
    yield from (f"torchd version: {version}", "")
    yield from (f"Machine: {about.get('machine', '')}", "", f"    {about.get('command', '')}", "")
    for group, members in by_group(rows).items():
        yield from (f"## {_cell(group)}", "", _line(("version", *COLUMNS)), _line([":-:"] * (len(COLUMNS) + 1)))
        for row in members:
            told = columns_of(row)
            yield _line((version, *(told.get(name, "") for name in COLUMNS)))
        yield ""
    yield from ("## What the columns hold", "")
    yield from (f"- {note}" for note in NOTES)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
