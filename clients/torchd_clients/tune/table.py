"""The table of a search: the columns that people who tune by hand write down, and why each setting lost."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import MARKDOWN
from rich.table import Table

from torchd_clients.tables import printable
from torchd_clients.tune.outcome import Fate, Trial, longest, why_lost
from torchd_clients.tune.search import Result
from torchd_clients.tune.slo import Slo
from torchd_clients.tune.space import Space

_KIBIBYTE = 1024


def trials_table(trials: Sequence[Trial], result: Result, space: Space, slo: Slo, payload: str) -> Table:
    """One row for each setting, the best on top."""
    table = Table(box=MARKDOWN, title=f"bound: {slo}", title_justify="left")
    for name in ("Device", "Concurrency", "# Requests", "# Workers", "Threads", "Batch size", "Batch delay"):
        table.add_column(name, justify="right" if name != "Device" else "left")
    table.add_column("Payload")
    table.add_column("Optimization")
    table.add_column("Throughput", justify="right")
    table.add_column("Latency P99", justify="right")
    table.add_column("", overflow="fold", min_width=28)
    last_words = [result.best] + ([result.default] if result.is_better else [])
    settings = {trial.setting for trial in last_words}
    others = [trial for trial in longest(trials) if trial.setting not in settings]
    others.sort(key=lambda trial: -_rank(trial, slo))
    rivals = [trial for trial in trials if trial.setting == result.best.setting] + [result.best]
    for trial in (*last_words, *others):
        table.add_row(*_row(trial, space, slo, payload), printable(_verdict(trial, result, rivals, slo)))
    return table


def headline(result: Result, slo: Slo) -> str:
    """The result in a sentence."""
    best, default = result.best.best_run(slo), result.default.best_run(slo)
    if best is None or default is None:
        return "nothing could be measured"
    told = f"{best.throughput:.1f}/s, {slo.name} {best.bounded_ms:.0f} ms with {best.clients} clients"
    if not result.is_better:
        held = "" if result.default.is_within(slo) else f", which does not hold the bound ({slo})"
        return f"Nothing is better than the archive's own setting{held}: {told}."
    without = "" if result.default.is_within(slo) else f", which does not hold the bound ({default.bounded_ms:.0f} ms)"
    times = best.throughput / default.throughput
    return f"Best: {result.best.setting}: {told}; {times:.2f} times the default's {default.throughput:.1f}/s{without}."


def payload_of(sizes: Sequence[int]) -> str:
    """How large the inputs are, for people."""
    least, most = _size(min(sizes)), _size(max(sizes))
    return least if least == most else f"{least} to {most}"


def _row(trial: Trial, space: Space, slo: Slo, payload: str) -> list[str]:
    setting, run = trial.setting, trial.best_run(slo)
    measured = [f"{run.clients}", f"{run.requests}"] if run else ["", ""]
    return [
        setting.device.upper() or ("GPU" if space.is_on_gpu(setting) else "CPU"),
        *measured,
        str(setting.workers),
        str(space.threads_of(setting)),
        str(setting.batch_size),
        f"{setting.batch_delay} ms" if setting.batch_size > 1 else "",
        payload,
        setting.optimization,
        f"{run.throughput:.2f}" if run else "",
        f"{run.p99_ms:.1f} ms" if run else "",
    ]


def _verdict(trial: Trial, result: Result, rivals: Sequence[Trial], slo: Slo) -> str:
    if trial.setting == result.best.setting:
        return "best" if result.is_better else "best, the default"
    lost = why_lost(trial, rivals, slo)
    return f"default, {lost}" if trial.setting == result.default.setting else lost


def _rank(trial: Trial, slo: Slo) -> float:
    score = trial.score(slo)
    unmeasured = {Fate.MEASURED: -1e9, Fate.FAILED: -2e9, Fate.DIFFERS: -3e9, Fate.NOT_LOADED: -4e9}
    return unmeasured[trial.fate] if score is None else score


def _size(size: int) -> str:
    return f"{size} B" if size < _KIBIBYTE else f"{size / _KIBIBYTE:.0f} KiB"
