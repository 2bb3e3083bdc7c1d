"""The command `torchd bench-compare`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from torchd_clients.bench.changes import Change, Comparison

_SAME, _WORSE, _UNUSABLE = 0, 1, 2
_AT_LEAST = 5.0
_MARKS = {-1: "worse", 0: "", 1: "better"}
_STYLES = {-1: "red", 0: "", 1: "green"}


def bench_compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="bench.json of the run before.", show_default=False)],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="bench.json of the run after.", show_default=False)],
    at_least: Annotated[
        float, typer.Option(min=0.0, metavar="PERCENT", help="A smaller difference is none, whatever the noise.")
    ] = _AT_LEAST,
) -> None:
    """Say what changed between two runs of `torchd bench` beyond noise.

    OLD and NEW are files of --json, or bench.json of --report. Settings are
    matched by model, device, workers, batches, clients and input. One side may
    be ab_report.csv of TorchServe's benchmark suite.

    Throughput, p50 and p99 are medians of the repeats. One changed where old and
    new differ by more than the range (greatest less least) of the old repeats
    and the range of the new ones together, and by --at-least. With 3 repeats a
    server that did not change is called changed in about one figure of eighty,
    with 2 in one of eight; run once on both sides, it must differ by 15 %.

    Examples:

    torchd bench-compare before/bench.json after/bench.json

    torchd bench-compare ab_report.csv after/bench.json --at-least 10

    Exit code: 0, 1 where a figure is worse, 2 where nothing could be compared.
    """
    from torchd_clients.bench.changes import compare, read_run
    from torchd_clients.bench.points import PointsInvalid
    from torchd_clients.bench.tables import terminal

    try:
        comparison = compare(read_run(old), read_run(new), at_least)
    except PointsInvalid as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"cannot read {error.filename}: {error.strerror}")
    terminal().print(shown(comparison))
    if not comparison.matched:
        _refuse(f"{old} and {new} have no setting in common")
    raise typer.Exit(_WORSE if comparison.count(-1) else _SAME)


def shown(comparison: Comparison) -> RenderableType:
    """A line for each figure of each setting, what has no partner, and the sum of it."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from torchd_clients.tables import printable

    table = Table("setting", "figure", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("old", "new", "change", "noise"):
        table.add_column(column, justify="right")
    table.add_column("")
    apart = _apart([one.setting for one in comparison.matched])
    for one in comparison.matched:
        setting = printable(_words(one.setting, apart))
        for number, change in enumerate(one.changes):
            if change.figure.startswith("errors") and change.old == change.new == 0.0:
                continue
            cells = (f"{change.old:,.2f}", f"{change.new:,.2f}", _arrow(change), _noise(change))
            mark = Text(_MARKS[change.verdict], style=_STYLES[change.verdict])
            table.add_row(setting if number == 0 else "", change.figure, *cells, mark)
        table.add_section()
    return Group(table, *(Text(printable(note)) for note in _notes(comparison, apart)))


def _notes(comparison: Comparison, apart: Sequence[str]) -> Iterator[str]:
    common = {name: value for name, value in _common(comparison).items() if name not in apart}
    if common:
        yield f"all: {_words(common, list(common))}"
    for side, alone in (("OLD", comparison.only_old), ("NEW", comparison.only_new)):
        for one in alone:
            yield f"only in {side}: {_words(one.setting, list(one.setting))}"
    if any(not one.is_repeated for one in comparison.matched):
        yield "run once on both sides: their noise is not known, 15 % is taken for it; see --repeats of `torchd bench`"
    better, worse = comparison.count(1), comparison.count(-1)
    same = comparison.count(0)
    yield f"{better} better, {worse} worse, {same} without a change beyond noise"


def _common(comparison: Comparison) -> Mapping[str, object]:
    return comparison.matched[0].setting if comparison.matched else {}


def _apart(settings: Sequence[Mapping[str, object]]) -> list[str]:
    """The names whose values tell the settings apart."""
    names = dict.fromkeys(name for setting in settings for name in setting)
    return [name for name in names if len({setting.get(name) for setting in settings}) > 1] or ["model", "protocol"]


def _words(setting: Mapping[str, object], names: Sequence[str]) -> str:
    words = {
        "workers": "{} workers",
        "threads": "{} threads",
        "batch_size": "batch {}",
        "batch_delay_ms": "{} ms delay",
        "clients": "{} clients",
        "rate": "{}/s",
    }
    told = [name for name in names if setting.get(name) not in (None, "", 0, 0.0)]
    return ", ".join(words.get(name, "{}").format(setting[name]) for name in told)


def _arrow(change: Change) -> str:
    arrow = (
        "\N{UPWARDS ARROW}" if change.new > change.old else "\N{DOWNWARDS ARROW}" if change.new < change.old else "="
    )
    return f"{arrow} {abs(change.percent):.1f} %"


def _noise(change: Change) -> str:
    return f"\N{PLUS-MINUS SIGN}{100 * change.noise / change.old:.1f} %" if change.old else ""


def _refuse(message: str) -> NoReturn:
    print(f"torchd: {message}", file=sys.stderr)
    raise typer.Exit(_UNUSABLE)
