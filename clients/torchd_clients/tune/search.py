"""The search as a whole: what halving asks for, then the default and the best measured again as they are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torchd_clients.tune.errors import TuneFailed
from torchd_clients.tune.halving import Halving, Rules, Task
from torchd_clients.tune.outcome import Fate, Trial, longest
from torchd_clients.tune.plan import Plan
from torchd_clients.tune.slo import Slo
from torchd_clients.tune.space import Setting, Space
from torchd_clients.tune.state import State
from torchd_clients.tune.trial import Examiner

# What torch.compile may add to a load, in seconds.
_COMPILING = 60.0
# A run takes so much longer than what counts of it.
_WITH_WARMUP = 1.3
CONFIRMING = 99
"""The rung of the last measurements, of the configuration as it is written."""
_CANDIDATES = 3
# The last measurements are so much longer than those of the highest rung.
_LONGER = 1.25


@dataclass(frozen=True, slots=True)
class Result:
    """The default and the best, measured alike; the same where nothing was better."""

    default: Trial
    best: Trial

    @property
    def is_better(self) -> bool:
        """Whether there is anything to change."""
        return self.best.setting != self.default.setting


Told = Callable[[str, Trial | None], None]


class Search:
    """One search. `told` hears what is tried next, and what it gave."""

    def __init__(self, space: Space, slo: Slo, state: State, plan: Plan, rules: Rules | None = None) -> None:
        self._space = space
        self._slo = slo
        self._state = state
        self._plan = plan
        self._rules = rules or Rules()
        self._refused: set[tuple[str, ...]] = set()
        self.ended_by = "nothing near the best is better"

    def run(self, examiner: Examiner, told: Told) -> Result:
        """Searches, confirms, and answers; what the state knows already is not measured again."""
        halving = Halving(self._space.seeds(), self._space.neighbours, self._rules)
        while tasks := halving.tasks():
            for task in sorted(tasks, key=_as_cheap_to_load):
                if not self._is_time_left(task):
                    self.ended_by = f"its {self._plan.budget:.0f} s were over"
                    return self._confirm(examiner, told)
                halving.tell(task, self._try(examiner, task, told))
        return self._confirm(examiner, told)

    def _try(self, examiner: Examiner, task: Task[Setting], told: Told) -> float | None:
        setting, rung = task.setting, task.rung
        trial = self._state.find(setting, rung)
        if trial is None:
            # Found out already: it cannot be loaded, or computes something else, whatever the number of workers.
            if self._is_hopeless(setting):
                return None
            told(str(setting), None)
            trial = examiner.examine(setting, rung, self._seconds(rung), self._clients(setting))
            self._state.add(trial)
            told(str(setting), trial)
        if setting == self._space.default and trial.fate is not Fate.MEASURED:
            raise TuneFailed(f"the default setting cannot be measured: {trial.fate}: {trial.reason}")
        self._learn(trial)
        return trial.score(self._slo)

    def _learn(self, trial: Trial) -> None:
        family = trial.setting.family
        if family == self._space.default.family:
            return
        loads = any(one.setting.family == family and one.fate is Fate.MEASURED for one in self._state.trials)
        if trial.fate is Fate.DIFFERS or (trial.fate is Fate.NOT_LOADED and not loads):
            self._refused.add(family)

    def _is_hopeless(self, setting: Setting) -> bool:
        """Whether it has everything that made another family be refused."""
        own = self._space.default.family
        for refused in self._refused:
            changes = [place for place, value in enumerate(refused) if value != own[place]]
            if all(setting.family[place] == refused[place] for place in changes):
                return True
        return False

    def _confirm(self, examiner: Examiner, told: Told) -> Result:
        default = self._again(examiner, self._space.default, told)
        if default.fate is not Fate.MEASURED:
            raise TuneFailed(f"the default setting cannot be measured: {default.fate}: {default.reason}")
        least = default.score(self._slo) or 0.0
        for candidate in self._candidates()[:_CANDIDATES]:
            trial = self._again(examiner, candidate, told)
            score = trial.score(self._slo)
            if score is not None and trial.is_within(self._slo) and score > least + abs(least) * self._rules.least_gain:
                return Result(default, trial)
        return Result(default, default)

    def _candidates(self) -> list[Setting]:
        """Those that may win, best first: of the longest rung, under the bound."""
        usable = [
            trial
            for trial in longest(self._state.trials)
            if trial.is_within(self._slo)
            and trial.setting != self._space.default
            and not self._is_hopeless(trial.setting)
        ]
        usable.sort(key=lambda trial: (-trial.rung, -(trial.score(self._slo) or 0.0)))
        return [trial.setting for trial in usable]

    def _again(self, examiner: Examiner, setting: Setting, told: Told) -> Trial:
        """The last word on a setting: registered as its file says, and measured longer than before."""
        for known in self._state.confirmed:
            if known.setting == setting:
                return known
        told(f"once more, from its file: {setting}", None)
        seconds = _LONGER * self._seconds(self._rules.rungs - 1)
        trial = examiner.examine(setting, CONFIRMING, seconds, self._clients(setting), afresh=True)
        self._state.confirmed.append(trial)
        self._state.save()
        told(str(setting), trial)
        return trial

    def _clients(self, setting: Setting) -> int:
        """The number of clients that was best for this setting in an earlier trial; 0 where there was none."""
        known = [trial for trial in self._state.trials if trial.setting == setting]
        run = known[-1].best_run(self._slo) if known else None
        return run.clients if run else 0

    def _seconds(self, rung: int) -> float:
        return self._state.shortest_seconds * float(2**rung)

    def _is_time_left(self, task: Task[Setting]) -> bool:
        """Whether there is, for this trial and for measuring the default and the best once more."""
        if not self._state.trials:
            return True
        confirming = 2 * (self._state.load_seconds + _WITH_WARMUP * _LONGER * self._seconds(self._rules.rungs - 1))
        loading = self._state.load_seconds + (_COMPILING if task.setting.compile else 0.0)
        needed = loading + _WITH_WARMUP * self._seconds(task.rung) + confirming
        return self._state.spent_seconds + needed <= self._plan.budget


def _as_cheap_to_load(task: Task[Setting]) -> tuple[object, ...]:
    """Settings that the living model can be brought to follow each other; the default's own family comes first."""
    one = task.setting
    return (one.family, one.threads, one.workers, one.batch_size, one.batch_delay)
