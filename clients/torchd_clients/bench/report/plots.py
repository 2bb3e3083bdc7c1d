"""Pictures of a report: the latencies of each setting, and its throughput over how many ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from math import log10
from typing import TYPE_CHECKING, Any

from torchd_clients.bench.report.labels import setting_labels, title
from torchd_clients.bench.report.rows import Row, by_group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TICKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)
_STEPS = 300
_BARS_AT_LEAST = 5
_PANEL = (6.4, 4.6)


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a picture. `cycle` are apart for eyes that do not tell red from green, too."""

    paper: str
    ink: str
    faint: str
    cycle: tuple[str, ...]


LIGHT = Theme(
    *("#ffffff", "#1f2328", "#d0d7de"),
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#7a3e9d", "#4d4d4d"),
)
DARK = Theme(
    *("#161b22", "#e6edf3", "#3d444d"),
    ("#56b4e9", "#ff9e4a", "#2fd0a0", "#f0a3cf", "#f0e442", "#8ab4ff", "#c9a0ff", "#b8b8b8"),
)


def latencies(rows: Sequence[Row], theme: Theme = LIGHT) -> bytes:
    """PNG: latency at each percentile, on a scale that gives the slowest one of 10, 100, 1000 equal room."""
    return _drawn(rows, theme, _latency_panel)


def throughput(rows: Sequence[Row], theme: Theme = LIGHT) -> bytes:
    """PNG: good answers a second over clients, or of each setting where all are asked by as many."""
    return _drawn(rows, theme, _throughput_panel)


def _drawn(rows: Sequence[Row], theme: Theme, panel: Callable[[Axes, Sequence[Row], Theme], None]) -> bytes:
    # Imported here: it takes a second, and a report draws once.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [panel_rows for members in by_group(rows).values() for panel_rows in _by_protocol(members)]
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    colours: Any = {"text.color": theme.ink, "axes.labelcolor": theme.ink, "axes.edgecolor": theme.faint}
    colours |= {"xtick.color": theme.ink, "ytick.color": theme.ink, "axes.facecolor": theme.paper}
    colours |= {"grid.color": theme.faint, "legend.facecolor": theme.paper, "legend.edgecolor": theme.faint}
    with matplotlib.rc_context(colours):
        figure = Figure((columns * _PANEL[0], lines * _PANEL[1]), dpi=130, layout="constrained", facecolor=theme.paper)
        grid = figure.subplots(lines, columns, squeeze=False).flat
        for axes, members in zip(grid, panels, strict=False):
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_axisbelow(True)
            axes.set_title(_wrapped(title(members[0], members)), fontsize=9.5, loc="left")
            panel(axes, members, theme)
        for axes in list(grid)[len(panels) :]:
            axes.remove()
        FigureCanvasAgg(figure)
        picture = BytesIO()
        figure.savefig(picture, format="png", facecolor=theme.paper)
    return picture.getvalue()


def _by_protocol(rows: Sequence[Row]) -> list[list[Row]]:
    measured = sorted((row for row in rows if row.point is not None), key=lambda row: row.protocol)
    return [list(members) for _, members in groupby(measured, key=lambda row: row.protocol)]


def _latency_panel(axes: Axes, rows: Sequence[Row], theme: Theme) -> None:
    furthest, fastest, slowest = 1.0, float("inf"), 0.0
    for number, (row, label) in enumerate(zip(rows, setting_labels(rows), strict=True)):
        if row.point is None or not row.point.measurement.answered:
            continue
        kept = row.point.measurement
        # It ends where one in `answered` is left: the slowest.
        end = log10(max(10, kept.answered))
        places = [end * step / _STEPS for step in range(_STEPS + 1)]
        values = [kept.percentile_ms(100 * (1 - 10**-place)) for place in places[:-1]] + [kept.latencies_ms[-1]]
        axes.plot(places, values, label=label, linewidth=1.6, **_style(number, theme))
        furthest, fastest, slowest = max(furthest, end), min(fastest, values[0]), max(slowest, values[-1])
    ticks = [percent for percent in _TICKS if _place(percent) <= furthest]
    axes.set_xticks(
        [_place(percent) for percent in ticks], [f"{percent:g} %" if percent else "least" for percent in ticks]
    )
    axes.set(xlabel="of the answers came within", ylabel="latency, ms")
    if slowest > 10 * fastest > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.6, linewidth=0.6)
    if len(rows) > 1 and slowest:
        _legend(axes)


def _throughput_panel(axes: Axes, rows: Sequence[Row], theme: Theme) -> None:
    if len({row.clients for row in rows}) > 1 and not any(row.point and row.point.rate for row in rows):
        _over_clients(axes, rows, theme)
    else:
        _by_setting(axes, rows, theme)


def _over_clients(axes: Axes, rows: Sequence[Row], theme: Theme) -> None:
    lines: dict[str, list[Row]] = {}
    for row, label in zip(rows, setting_labels(rows, with_load=False), strict=True):
        lines.setdefault(label, []).append(row)
    for number, (label, members) in enumerate(lines.items()):
        members = sorted(members, key=lambda row: row.clients)
        values, ranges = _throughputs(members)
        places = [row.clients for row in members]
        axes.errorbar(places, values, ranges, label=label, marker="o", markersize=4, capsize=3, **_style(number, theme))
    counts = sorted({row.clients for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set(xlabel="clients", ylabel="answers a second")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.6, linewidth=0.6)
    if len(lines) > 1:
        _legend(axes)


def _by_setting(axes: Axes, rows: Sequence[Row], theme: Theme) -> None:
    values, ranges = _throughputs(rows)
    places = range(len(rows))
    bars = axes.barh(places, values, xerr=ranges, height=0.62, color=theme.cycle[0], ecolor=theme.ink, capsize=3)
    axes.bar_label(
        bars, [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values], padding=5, fontsize=8
    )
    axes.set_yticks(places, setting_labels(rows))
    axes.tick_params(axis="y", length=0)
    # From the top; a bar alone does not fill the picture.
    axes.set_ylim(max(len(rows), _BARS_AT_LEAST) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.set(xlabel="answers a second")
    axes.grid(axis="x", alpha=0.6, linewidth=0.6)


def _legend(axes: Axes) -> None:
    """Below the picture: among the lines it would lie on some of them."""
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)


def _throughputs(rows: Sequence[Row]) -> tuple[list[float], list[list[float]]]:
    """What each row gave, and how far below and above it its repeats lie."""
    points = [row.point for row in rows if row.point is not None]
    values = [point.measurement.throughput for point in points]
    repeats = [
        [one.throughput for one in point.repeats] or [value] for point, value in zip(points, values, strict=True)
    ]
    below = [max(0.0, value - min(all_runs)) for value, all_runs in zip(values, repeats, strict=True)]
    above = [max(0.0, max(all_runs) - value) for value, all_runs in zip(values, repeats, strict=True)]
    return values, [below, above]


def _style(number: int, theme: Theme) -> dict[str, Any]:
    colours = len(theme.cycle)
    return {"color": theme.cycle[number % colours], "linestyle": ("-", "--", ":", "-.")[number // colours % 4]}


def _place(percent: float) -> float:
    return -log10(1 - percent / 100)


def _wrapped(text: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, 76))
