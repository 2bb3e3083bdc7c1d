"""What a search learns of the default before it tries anything else: its answers, its speed, what there is room for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from torchd_clients.tune.answers import difference
from torchd_clients.tune.errors import TuneFailed
from torchd_clients.tune.plan import Plan
from torchd_clients.tune.served import NotLoaded, RequestsFailed
from torchd_clients.tune.space import CHOICES, Setting, Space
from torchd_clients.tune.state import State

# The shortest trial is as long as the default takes for so many answers, within these limits in seconds.
_ANSWERS = 30
_SHORTEST, _LONGEST = 2.0, 4.0
# Inputs that are asked to see how fast the default is.
_FIRST = 8
# The answers to so many are compared, but to no more than fit into this part of the time, asked one by one.
_INPUTS_AT_MOST = 64
_COMPARING = 0.03


class Server(Protocol):
    """What `Served` can."""

    def load(self, setting: Setting, *, afresh: bool = False) -> None:
        """Has the model in this setting."""

    def ask(self, at_once: int, count: int = 0) -> list[bytes]:
        """The answers to the first inputs, 0: to all."""

    def most_workers(self) -> int:
        """How many workers there is memory for, 0 where that is not known."""


def learn_default(space: Space, state: State, server: Server, plan: Plan, clock: Callable[[], float]) -> Space:
    """Puts what it learns into the state, unless it is there; gives the space that is left. Raises TuneFailed."""
    if not state.answers:
        try:
            began = clock()
            server.load(space.default)
            state.load_seconds = clock() - began
            server.ask(1, _FIRST)  # the first requests of a process are slow
            began = clock()
            asked = len(server.ask(1, _FIRST))
            each = (clock() - began) / asked
            state.shortest_seconds = plan.trial or min(max(_ANSWERS * each, _SHORTEST), _LONGEST)
            count = max(_FIRST, min(_INPUTS_AT_MOST, int(_COMPARING * plan.budget / max(each, 1e-6))))
            answers = server.ask(1, count)
            # A model that draws lots gives other answers every time: no setting can be judged by them.
            state.is_comparable = not difference(answers[:_FIRST], server.ask(1, _FIRST))
        except (NotLoaded, RequestsFailed) as error:
            raise TuneFailed(f"the archive cannot be served as it is: {error}") from error
        state.most_workers = server.most_workers()
        state.answers = answers
        state.save()
    space = replace(space, most_workers=state.most_workers)
    if state.is_comparable:
        return space
    return replace(space, values={**space.values, **{name: (getattr(space.default, name),) for name in CHOICES}})
