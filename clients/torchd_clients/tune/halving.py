"""Successive halving around a moving best: many shortly, the better ones longer, then the best one's neighbours.

Nothing is measured here and no time passes: `tasks` says what to measure next, `tell` takes what it gave. The same
answers lead to the same tasks, so a search that was interrupted goes on by telling again what is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Task(Generic[S]):
    """A setting to be measured as long as its rung says."""

    setting: S
    rung: int


@dataclass(frozen=True, slots=True)
class Rules:
    """How many rungs there are, which part of a field goes up, and what counts as better."""

    rungs: int = 3
    keep: float = 1 / 3
    # A round that brings less than this over the best ends the search.
    least_gain: float = 0.03
    # A short measurement may be so much worse than the best's and yet go on to a longer one.
    slack: float = 0.08


class Halving(Generic[S]):
    """One search. A score is better the higher it is; None says that the setting cannot be used."""

    def __init__(self, seeds: Sequence[S], neighbours: Callable[[S], Iterable[S]], rules: Rules | None = None) -> None:
        self._neighbours = neighbours
        self._rules = rules or Rules()
        self._scores: dict[tuple[S, int], float | None] = {}
        self._field: list[S] = list(dict.fromkeys(seeds))
        self._rung = 0
        self._best: S | None = None

    def tasks(self) -> list[Task[S]]:
        """What is to be measured now, in any order; nothing when the search is over."""
        while self._field:
            if missing := [Task(one, self._rung) for one in self._field if (one, self._rung) not in self._scores]:
                return missing
            self._climb()
        return []

    def tell(self, task: Task[S], score: float | None) -> None:
        """What a task gave."""
        self._scores[task.setting, task.rung] = score

    @property
    def best(self) -> S | None:
        """The best so far, of those measured longest; None while nothing can be used."""
        if self._best is not None:
            return self._best
        for rung in reversed(range(self._rules.rungs)):
            scores = {one: score for (one, at), score in self._scores.items() if at == rung and score is not None}
            if scores:
                return max(scores, key=lambda one: scores[one])
        return None

    def _climb(self) -> None:
        """All of this rung are known: the better part goes up, or the round ends."""
        scored = [(one, score) for one in self._field if (score := self._scores[one, self._rung]) is not None]
        scored.sort(key=lambda pair: -pair[1])
        if self._rung < self._rules.rungs - 1:
            kept = scored[: math.ceil(len(scored) * self._rules.keep)]
            self._field = [one for one, score in kept if self._may_win(score)]
            self._rung += 1
        else:
            self._field = self._next_round(*scored[0]) if scored else []

    def _may_win(self, score: float) -> bool:
        if self._best is None:
            return True
        best = self._scores[self._best, self._rung]
        return best is None or score >= best - abs(best) * self._rules.slack

    def _next_round(self, winner: S, score: float) -> list[S]:
        if self._best is not None:
            best = self._scores[self._best, self._rung] or 0.0
            if score <= best + abs(best) * self._rules.least_gain:
                return []
        self._best, self._rung = winner, 0
        return [one for one in dict.fromkeys(self._neighbours(winner)) if (one, 0) not in self._scores]
