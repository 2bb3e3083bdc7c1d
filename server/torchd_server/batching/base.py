"""What a worker and a model version know of a batch policy, and what a policy knows of a worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torchd_protos.frames import Call, Header
from torchd_server.batching.turns import Turn
from torchd_server.batching.waits import BatchWait
from torchd_server.request import Request


class Taker(Protocol):
    """A worker, as far as the policy knows it."""

    @property
    def room(self) -> int:
        """Requests it can take now."""

    @property
    def takes_ahead(self) -> bool:
        """Whether it has one batch and could be sent the next."""

    def run(self, batch: list[Request], waited_seconds: float) -> None:
        """Takes a batch; `waited_seconds` of its time in the queue it waited for company."""


class Policy(Protocol):
    """Who runs next, with whom, and when: the waiting requests of one model version."""

    @property
    def turn(self) -> Turn:
        """When more may join."""

    @property
    def depth(self) -> int:
        """Requests that wait."""

    @property
    def room(self) -> int:
        """Requests that may still be queued."""

    @property
    def tickets(self) -> int:
        """Requests that would go to a worker at once."""

    def admit(self, call: Call) -> Call:
        """The call as it may be queued; raises what stands against it. Ask for `room` first."""

    def resize(self, turn: Turn, size: int, limit: int, make_wait: Callable[[], BatchWait]) -> None:
        """From now on batches have this size, the queue this limit, and waiting this rule."""

    def put(self, request: Request) -> None:
        """Queues a request whose call was admitted a moment ago."""

    def has_room(self, taker: Taker) -> None:
        """`taker` may have room; if so it gets a batch by `run`, at once or later."""

    def leave(self, taker: Taker, handed_back: Sequence[Request] = ()) -> None:
        """`taker` takes no more batches; `handed_back` were sent to it and have not begun."""

    def began(self, request: Request) -> None:
        """A running request had its first answer, and more of it follows."""

    def heard(self, headers: Sequence[Header]) -> None:
        """A handler set these headers on an answer."""

    def finished(self, taker: Taker, requests: Sequence[Request], seconds: float | None) -> None:
        """`requests` no longer run; they took `seconds` if they ran to their end."""

    def close(self, sequence: str) -> None:
        """Ends a sequence whose client has left."""

    def waiting(self) -> list[Request]:
        """Takes every waiting request out, for the one who must answer them all."""
