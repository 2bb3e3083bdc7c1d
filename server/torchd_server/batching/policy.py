"""The batch policy of one model version: it owns the waiting requests and hands batches to workers that have room.

Everything happens in plain calls between two awaits: a request comes, a worker has room, a timer rings; each time the
policy looks whether a batch can go. There is no task that could die with requests in its hands.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from torchd_server.batching.queues import Queue
from torchd_server.batching.waits import BatchWait
from torchd_server.clock import Clock, Timer
from torchd_server.request import Request


class Taker(Protocol):
    """A worker, as far as the policy knows it."""

    def run(self, batch: list[Request], waited_seconds: float) -> None:
        """Takes a batch; `waited_seconds` of its time in the queue it waited for company."""


class BatchPolicy:
    """Waiting requests of one model version, and the workers that wait for them."""

    def __init__(self, queue: Queue, size: int, limit: int, wait: BatchWait, clock: Clock) -> None:
        self._queue = queue
        self._size = size
        self._limit = limit
        self._wait = wait
        self._clock = clock
        self._idle: deque[Taker] = deque()
        self._running = 0
        self._collecting_since: float | None = None
        self._timer: Timer | None = None

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def room(self) -> int:
        """Requests that may still be queued."""
        return max(0, self._limit - len(self._queue))

    def resize(self, size: int, limit: int, wait: BatchWait) -> None:
        """From now on batches have this size, the queue this limit, and waiting this rule."""
        self._size = size
        self._limit = limit
        self._wait = wait
        self._collecting_since = None
        self._dispatch()

    def put(self, request: Request) -> None:
        """Queues a request; ask for `room` first."""
        request.queued(self)
        self._queue.put(request)
        self._wait.arrived(self._clock.time(), len(self._queue) + self._running)
        self._dispatch()

    def put_back(self, requests: Iterable[Request]) -> None:
        """Queues requests that a dead worker had not begun; they are first again, over the limit if need be."""
        waiting = list(requests)
        for request in waiting:
            request.queued(self)
        self._queue.put_back(waiting)
        self._dispatch()

    def has_room(self, taker: Taker) -> None:
        """`taker` waits for a batch; it gets one by `run`, at once or later."""
        self._idle.append(taker)
        self._dispatch()

    def leave(self, taker: Taker) -> None:
        """`taker` takes no more batches."""
        if taker in self._idle:
            self._idle.remove(taker)
            self._dispatch()

    def finished(self, requests: int, seconds: float | None) -> None:
        """`requests` of a batch no longer run; the batch took `seconds` if it ran to its end."""
        self._running -= requests
        if seconds is not None:
            self._wait.ran(seconds)

    def release(self, request: Request) -> None:
        """A waiting request was cancelled or has expired."""
        self._queue.discard(request)
        self._dispatch()

    def credit(self, request: Request, size: int) -> None:
        """A waiting request has no answer to acknowledge."""

    def waiting(self) -> list[Request]:
        """Takes every waiting request out, for the one who must answer them all."""
        return self._queue.take(len(self._queue))

    def _dispatch(self) -> None:
        """Sends every batch that can go now; sets the timer for the one that cannot yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle and len(self._queue):
            now = self._clock.time()
            if self._collecting_since is None:
                self._collecting_since = now
                self._wait.opened(now)
            if len(self._queue) < self._size:
                goes_at = self._wait.until(self._queue.oldest().received_at, len(self._queue), self._running)
                if goes_at > now:
                    self._timer = self._clock.call_at(goes_at, self._dispatch)
                    return
            self._send(now - self._collecting_since)
        self._collecting_since = None

    def _send(self, waited_seconds: float) -> None:
        batch = self._queue.take(self._size)
        self._running += len(batch)
        self._wait.left(len(self._queue) + self._running)
        self._collecting_since = None
        self._idle.popleft().run(batch, waited_seconds)
