"""The order in which waiting requests are taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from torchd_server.request import Request


class Queue(Protocol):
    """Waiting requests, in some order."""

    def __len__(self) -> int:
        """How many wait."""

    def put(self, request: Request) -> None:
        """One more waits."""

    def put_back(self, requests: Iterable[Request]) -> None:
        """These were taken but have not run: each is again where it was."""

    def take(self, most: int) -> list[Request]:
        """The next ones, at most `most`."""

    def take_all(self) -> list[Request]:
        """Every one, in the order of arrival."""

    def discard(self, request: Request) -> None:
        """Forgets one that no longer waits."""

    def oldest(self) -> Request:
        """The one that came first; the next batch holds it."""

    def ran(self, requests: Sequence[Request], seconds: float | None) -> None:
        """What was taken together runs no more; it took `seconds` if it ran to its end."""


class Fifo:
    """First come, first served. Taking one out of the middle costs no more than taking the first."""

    def __init__(self) -> None:
        self._waiting: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._waiting.values())

    def put(self, request: Request) -> None:
        """Puts it last."""
        self._waiting[request.number] = request

    def put_back(self, requests: Iterable[Request]) -> None:
        """Puts each where it was: numbers are given in the order of arrival."""
        back = {request.number: request for request in requests}
        self._waiting = dict(sorted((self._waiting | back).items()))

    def take(self, most: int) -> list[Request]:
        """The first ones."""
        if most >= len(self._waiting):
            taken = list(self._waiting.values())
            self._waiting.clear()
            return taken
        numbers = [number for number, _ in zip(self._waiting, range(most), strict=False)]
        return [self._waiting.pop(number) for number in numbers]

    def take_all(self) -> list[Request]:
        """Every one, in the order of arrival."""
        return self.take(len(self._waiting))

    def discard(self, request: Request) -> None:
        """Forgets it, wherever it stands."""
        self._waiting.pop(request.number, None)

    def oldest(self) -> Request:
        """The first one; the queue must not be empty."""
        return next(iter(self._waiting.values()))

    def ran(self, requests: Sequence[Request], seconds: float | None) -> None:
        """Changes nothing."""
