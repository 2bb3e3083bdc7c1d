"""What a trial gave, how good that is under the bound, and why a setting lost against the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from torchd_clients.tune import space
from torchd_clients.tune.slo import Slo
from torchd_clients.tune.space import Setting


class Fate(StrEnum):
    """How a trial ended."""

    MEASURED = "measured"
    NOT_LOADED = "did not load"
    DIFFERS = "outputs differ"
    FAILED = "requests failed"


@dataclass(frozen=True, slots=True)
class Run:
    """One load of so many clients. `bounded_ms` is the percentile that the bound speaks of."""

    clients: int
    requests: int
    seconds: float
    throughput: float
    p50_ms: float
    p99_ms: float
    bounded_ms: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting, measured as long as its rung says; in several runs where the first had too many clients."""

    setting: Setting
    rung: int
    fate: Fate
    reason: str = ""
    runs: tuple[Run, ...] = ()
    took_seconds: float = 0.0
    # What the worker says of its optimisation and of its check.
    optimization: Mapping[str, Any] = field(default_factory=dict)
    memory_mib: float = 0.0

    def best_run(self, slo: Slo) -> Run | None:
        """The run of most throughput under the bound, else the one nearest to it; None if nothing was measured."""
        if self.fate is not Fate.MEASURED or not self.runs:
            return None
        within = [run for run in self.runs if run.bounded_ms <= slo.bound_ms]
        if within:
            return max(within, key=lambda run: run.throughput)
        return min(self.runs, key=lambda run: run.bounded_ms)

    def is_within(self, slo: Slo) -> bool:
        """Whether it holds the bound."""
        run = self.best_run(slo)
        return run is not None and run.bounded_ms <= slo.bound_ms

    def score(self, slo: Slo) -> float | None:
        """Throughput under the bound; below 0 and lower the farther above it; None where it cannot be used."""
        run = self.best_run(slo)
        if run is None:
            return None
        return run.throughput if run.bounded_ms <= slo.bound_ms else -run.bounded_ms / slo.bound_ms


def longest(trials: Sequence[Trial]) -> list[Trial]:
    """Each setting once, by its last and longest trial; in the order they were first tried."""
    found: dict[Setting, Trial] = {}
    for trial in trials:
        known = found.get(trial.setting)
        if known is None or trial.rung >= known.rung or trial.fate is not Fate.MEASURED:
            found[trial.setting] = trial
    return list(found.values())


def why_lost(trial: Trial, best: Sequence[Trial], slo: Slo) -> str:
    """Why it is not the best, whose trials `best` are: those of the same length are compared."""
    if trial.fate is not Fate.MEASURED:
        return f"{trial.fate}: {trial.reason}"
    run = trial.best_run(slo)
    if run is None:
        return "no answer within the time"
    if run.bounded_ms > slo.bound_ms:
        return f"over the bound: {slo.name} {run.bounded_ms:.0f} ms with {run.clients} clients"
    rivals = [one for one in best if one.rung == trial.rung] or best[-1:]
    rival = rivals[-1].best_run(slo) if rivals else None
    if rival is None:
        return ""
    slower = (1 - run.throughput / rival.throughput) * 100
    return f"slower by {slower:.0f} %" if slower >= 0.5 else "no faster by more than the noise"


def as_json(trial: Trial) -> dict[str, Any]:
    """The trial as a file keeps it."""
    return asdict(trial) | {"fate": str(trial.fate)}


def from_json(document: Mapping[str, Any]) -> Trial:
    """The trial a file kept."""
    known = dict(document)
    known["setting"] = space.from_json(known["setting"])
    known["fate"] = Fate(known["fate"])
    known["runs"] = tuple(Run(**run) for run in known["runs"])
    return Trial(**known)
