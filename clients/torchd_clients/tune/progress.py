"""What a person sees while a search runs: what is tried, how many were, the best so far, the time that is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from torchd_clients.tables import printable
from torchd_clients.tune.outcome import Fate, Trial
from torchd_clients.tune.search import Told
from torchd_clients.tune.slo import Slo
from torchd_clients.tune.state import State


@contextmanager
def shown(console: Console, state: State, slo: Slo, budget: float) -> Iterator[Told]:
    """What a search tells goes to the console: a line for each trial, and where it is a terminal a bar below them."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=budget)
        best = max((_score(trial, slo) for trial in state.trials), default=0.0)

        def told(what: str, trial: Trial | None) -> None:
            nonlocal best
            spent = state.spent_seconds
            left = max(0.0, budget - spent)
            if trial is None:
                said = f"trial {len(state.trials) + 1}: {what} | best {best:.1f}/s | at most {left:.0f} s left"
                progress.update(task, description=printable(said), completed=min(spent, budget))
                return
            best = max(best, _score(trial, slo))
            console.print(printable(f"{what}: {_result(trial, slo)}"), markup=False, highlight=False, soft_wrap=True)

        yield told


def _score(trial: Trial, slo: Slo) -> float:
    return trial.score(slo) or 0.0


def _result(trial: Trial, slo: Slo) -> str:
    run = trial.best_run(slo)
    if run is None:
        return f"{trial.fate}: {trial.reason}" if trial.fate is not Fate.MEASURED else trial.reason
    over = "" if trial.is_within(slo) else ", over the bound"
    return f"{run.throughput:.1f}/s, {slo.name} {run.bounded_ms:.0f} ms with {run.clients} clients{over}"
