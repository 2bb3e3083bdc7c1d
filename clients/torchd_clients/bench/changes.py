"""What changed between two runs beyond noise: settings matched, each figure judged by the repeats of both."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import median

from torchd_clients.bench.measurement import Measurement, Point
from torchd_clients.bench.points import PointsInvalid, read_points

# What two points must have in common. What one side does not tell is taken as the other's.
SETTING = ("model", "protocol", "device", "workers", "threads", "batch_size", "batch_delay_ms")
LOAD = ("clients", "rate", "optimization", "input")
FIGURES = ("throughput", "p50", "p99")
# Noise of what was run once on both sides, as a part of it: what a quiet machine shows from one run to the next.
UNREPEATED = 0.15
# As many more requests in a hundred without a good answer are a change, however fast the others were.
_ERRORS_BEYOND = 0.1
_LINK = re.compile(r"\[[^]]*]\((.*)\)")
_LATENCIES = {"p50": "TS latency P50", "p99": "TS latency P99"}


@dataclass(frozen=True, slots=True)
class Measured:
    """One setting of one run: what it was, and its figures run by run."""

    setting: Mapping[str, object]
    figures: Mapping[str, Sequence[float]]
    error_percent: float


@dataclass(frozen=True, slots=True)
class Change:
    """One figure before and after. `noise` is the difference that the repeats explain; `verdict` -1, 0 or 1: better."""

    figure: str
    old: float
    new: float
    noise: float
    verdict: int

    @property
    def percent(self) -> float:
        """Of the old one; infinite where that was 0."""
        if self.old == self.new:
            return 0.0
        return 100 * (self.new - self.old) / self.old if self.old else inf


@dataclass(frozen=True, slots=True)
class Matched:
    """A setting that both runs have, and its figures."""

    setting: Mapping[str, object]
    changes: tuple[Change, ...]
    is_repeated: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """All of two runs; `only_old` and `only_new` have no partner."""

    matched: tuple[Matched, ...]
    only_old: tuple[Measured, ...]
    only_new: tuple[Measured, ...]

    def count(self, verdict: int) -> int:
        """Figures of that verdict."""
        return sum(change.verdict == verdict for one in self.matched for change in one.changes)


def read_run(path: Path) -> list[Measured]:
    """The points of `torchd bench --json`, or the lines of an ab_report.csv. Raises PointsInvalid, OSError."""
    if path.suffix.lower() != ".csv":
        return [measured(point) for point in read_points(path)]
    with path.open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line.get("TS throughput")]
    try:
        return [_line(line) for line in lines]
    except (KeyError, TypeError, ValueError) as error:
        raise PointsInvalid(f"{path} is no ab_report.csv of a benchmark suite: {error}") from error


def measured(point: Point) -> Measured:
    """A point as one side of a comparison."""
    runs = point.repeats or (point.measurement,)
    asked = sum(run.answered + run.failed for run in runs)
    return Measured(
        setting={name: getattr(point, name) for name in (*SETTING, *LOAD)},
        figures={figure: [_figure(run, figure) for run in runs] for figure in FIGURES},
        error_percent=100 * sum(run.failed for run in runs) / asked if asked else 0.0,
    )


def compare(old: Sequence[Measured], new: Sequence[Measured], at_least_percent: float) -> Comparison:
    """Pairs the settings and judges each figure: noise is how far the repeats of both lie apart, added up."""
    left, matched, only_old = list(new), [], []
    for one in old:
        partner = next((other for other in left if _is_same(one.setting, other.setting)), None)
        if partner is None:
            only_old.append(one)
            continue
        left.remove(partner)
        matched.append(_matched(one, partner, at_least_percent))
    return Comparison(tuple(matched), tuple(only_old), tuple(left))


def _matched(old: Measured, new: Measured, at_least_percent: float) -> Matched:
    changes = [_judged(figure, old.figures[figure], new.figures[figure], at_least_percent) for figure in FIGURES]
    more_errors = new.error_percent - old.error_percent
    verdict = 0 if abs(more_errors) <= _ERRORS_BEYOND else -1 if more_errors > 0 else 1
    changes.append(Change("errors, %", old.error_percent, new.error_percent, _ERRORS_BEYOND, verdict))
    is_repeated = any(len(one.figures["throughput"]) > 1 for one in (old, new))
    # What is told by one side only is told.
    setting = {name: value for name, value in {**new.setting, **old.setting}.items() if value not in ("", None)}
    return Matched(setting, tuple(changes), is_repeated)


def _judged(figure: str, old: Sequence[float], new: Sequence[float], at_least_percent: float) -> Change:
    before, after = median(old), median(new)
    # A side that ran once is taken to be as noisy as the other one.
    ranges = [max(runs) - min(runs) for runs in (old, new) if len(runs) > 1]
    noise = sum(ranges) * 2 / len(ranges) if ranges else UNREPEATED * max(before, after)
    difference = after - before
    is_change = abs(difference) > noise and abs(difference) >= at_least_percent / 100 * before
    is_better = (difference > 0) == (figure == "throughput")
    return Change(figure, before, after, noise, (1 if is_better else -1) if is_change else 0)


def _is_same(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    return all(one[name] == other[name] for name in one.keys() & other.keys())


def _figure(run: Measurement, figure: str) -> float:
    return run.throughput if figure == "throughput" else run.percentile_ms(float(figure[1:]))


def _line(line: Mapping[str, str]) -> Measured:
    """A line of TorchServe's suite, which asks over REST and says neither device nor threads nor the model's name."""
    told = line["Benchmark"].split(", ")
    setting: dict[str, object] = {
        "protocol": told[1] if len(told) > 1 else "rest",
        "workers": int(line["Workers"]),
        "batch_size": int(line["Batch size"]),
        "batch_delay_ms": int(line["Batch delay"]),
        "clients": int(line["Concurrency"]),
        "rate": 0.0,
        "input": _target(line["Input"]).rpartition("/")[2],
    }
    if len(told) > 2:  # a line of our own
        setting["device"] = told[2]
    figures = {"throughput": [float(line["TS throughput"])]}
    figures |= {figure: [float(line[column])] for figure, column in _LATENCIES.items()}
    return Measured(setting, figures, float(line["TS error rate"] or 0.0))


def _target(link: str) -> str:
    found = _LINK.fullmatch(link)
    return found[1] if found else link
