"""A picture of a search: throughput against the percentile of the bound, the bound, the best and the default."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchd_clients.tune.outcome import Trial, longest
from torchd_clients.tune.search import Result
from torchd_clients.tune.slo import Slo


def draw(trials: Sequence[Trial], result: Result, slo: Slo, title: str, path: Path) -> None:
    """Writes it as PNG. One point for each run of each setting's longest trial."""
    # Imported here: it takes a second, and a search draws once.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    by_optimization: dict[str, list[tuple[float, float]]] = {}
    for trial in longest(trials):
        points = by_optimization.setdefault(trial.setting.optimization, [])
        points += [(run.bounded_ms, run.throughput) for run in trial.runs]
    for name, points in by_optimization.items():
        if points:
            label = "as the archive is" if name == "N/A" else name
            bounded, throughput = zip(*points, strict=True)
            axes.scatter(bounded, throughput, s=28, alpha=0.7, label=label)
    axes.axvline(slo.bound_ms, color="tab:red", linestyle="--", linewidth=1, label=f"bound: {slo}")
    for trial, name, marker in ((result.default, "default", "s"), (result.best, "best", "*")):
        if (run := trial.best_run(slo)) and (name == "default" or result.is_better):
            size = 220 if marker == "*" else 90
            axes.scatter([run.bounded_ms], [run.throughput], s=size, marker=marker, color="black", zorder=3)
            said = name if name == "default" else f"best: {trial.setting}"
            axes.annotate(
                f"{said}\n{run.throughput:.1f}/s, {run.bounded_ms:.0f} ms",
                (run.bounded_ms, run.throughput),
                textcoords="offset points",
                xytext=(8, -22),
                fontsize=8,
            )
    axes.set(xscale="log", xlabel=f"{slo.name}, ms", ylabel="answers a second", title=title)
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png")
