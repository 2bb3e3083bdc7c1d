"""When more requests may join those that a worker runs: the second half of a batch policy (policy = queue x turn)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol


class Turn(Protocol):
    """Says how many more a worker takes beside what it runs."""

    # What the worker process knows it by (Load.loop).
    loop: ClassVar[str]
    # Whether requests join and leave one by one; else a batch begins and ends as one.
    joins: ClassVar[bool]

    def room(self, running: int) -> int:
        """Requests that may go to a worker that runs `running`."""


@dataclass(frozen=True, slots=True)
class WholeBatch:
    """A batch runs to its end before the next one goes."""

    size: int
    loop: ClassVar[str] = ""
    joins: ClassVar[bool] = False

    def room(self, running: int) -> int:
        """All or nothing."""
        return 0 if running else self.size


@dataclass(frozen=True, slots=True)
class EachStep:
    """The handler is called again and again with all live requests; others join between two calls."""

    size: int
    loop: ClassVar[str] = "step"
    joins: ClassVar[bool] = True

    def room(self, running: int) -> int:
        """What the next call may hold beside the live ones."""
        return max(0, self.size - running)  # after a resize more may run


@dataclass(frozen=True, slots=True)
class FreeRunning:
    """Every request runs by itself, at most so many at once."""

    most: int
    loop: ClassVar[str] = "async"
    joins: ClassVar[bool] = True

    def room(self, running: int) -> int:
        """What is left of the most."""
        return max(0, self.most - running)
