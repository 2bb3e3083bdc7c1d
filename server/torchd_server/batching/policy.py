"""The batch policy of one model version: it owns the waiting requests and hands batches to workers that have room.

Everything happens in plain calls between two awaits: a request comes, a worker has room, a timer rings; each time the
policy looks whether a batch can go. There is no task that could die with requests in its hands.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from torchd_protos.frames import Call, Header
from torchd_server.batching.base import Taker
from torchd_server.batching.queues import Queue
from torchd_server.batching.turns import Turn, WholeBatch
from torchd_server.batching.waits import BatchWait, Company
from torchd_server.clock import Clock, Timer
from torchd_server.request import Request

# So much work is sent ahead of a worker: for quick batches the way between daemon and worker would be a good part of
# their time, and one that stands behind others loses no more than this should a second worker have room sooner.
AHEAD_SECONDS = 0.005
AHEAD_BATCHES = 16
# What is ahead no longer counts as waiting: it is at most this part of what the queue may hold (1/n).
AHEAD_SHARE = 4
# Batches of one that take no longer go to an idle worker in company, if company can be expected: each way between
# daemon and worker, with all that it wakes, costs more than the work itself, and many go it at the price of one.
COMPANY_BELOW_SECONDS = 0.001
# The event loop's timers count in milliseconds; for less it would go round and round.
LEAST_TIMER_SECONDS = 0.001
COST_WEIGHT = 0.1


class BatchPolicy:
    """Waiting requests of one model version, and the workers that wait for them.

    `size` is what a batch waits for; how many a worker takes, `turn` says: whole batches of `size` if not given.
    Only full batches are sent ahead: for no other would waiting have brought nothing.
    """

    sends_ahead = True

    def __init__(
        self, queue: Queue, size: int, limit: int, wait: BatchWait, clock: Clock, turn: Turn | None = None
    ) -> None:
        self.turn = turn or WholeBatch(size)
        self._queue = queue
        self._size = size
        self._limit = limit
        self._wait = wait
        self._clock = clock
        self._idle: deque[Taker] = deque()
        # Those that run a batch and may be sent more.
        self._busy: deque[Taker] = deque()
        # What a batch lately took; nothing is sent ahead before it is known.
        self._cost = math.inf
        self._company = Company()
        self._running = 0
        self._collecting_since: float | None = None
        self._timer: Timer | None = None
        self._rings_at = 0.0

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def room(self) -> int:
        """Requests that may still be queued."""
        return max(0, self._limit - len(self._queue))

    @property
    def running(self) -> int:
        """Requests that went to workers and have not come back."""
        return self._running

    @property
    def tickets(self) -> int:
        """Requests that would go to a worker at once."""
        return max(0, sum(taker.room for taker in self._idle) - len(self._queue))

    def admit(self, call: Call) -> Call:
        """Any call will do."""
        return call

    def resize(self, turn: Turn, size: int, limit: int, make_wait: Callable[[], BatchWait]) -> None:
        """From now on batches have this size, the queue this limit, and waiting this rule."""
        self.turn = turn
        self._size = size
        self._limit = limit
        self._wait = make_wait()
        self._collecting_since = None
        self._idle = deque(taker for taker in self._idle if taker.room)
        self._busy.clear()  # what was sent ahead has another size
        self._dispatch()

    def reorder(self, queue: Queue) -> None:
        """From now on requests are taken in this queue's order, those that wait already too."""
        queue.put_back(self._queue.take_all())
        self._queue = queue
        self._dispatch()

    def put(self, request: Request) -> None:
        """Queues a request; ask for `room` first."""
        request.queued(self)
        self._queue.put(request)
        now, in_system = self._clock.time(), len(self._queue) + self._running
        self._wait.arrived(now, in_system)
        self._company.arrived(now, in_system)
        self._dispatch()

    def put_back(self, requests: Iterable[Request]) -> None:
        """Queues requests that a dead worker had not begun; they are first again, over the limit if need be."""
        waiting = list(requests)
        for request in waiting:
            request.queued(self)
        self._queue.put_back(waiting)
        self._dispatch()

    def has_room(self, taker: Taker) -> None:
        """`taker` may have room; if so it gets a batch by `run`, at once or later."""
        if taker.room:  # after a resize it may run more than it should
            if taker not in self._idle:
                self._idle.append(taker)
        else:
            self._is_busy(taker)
        self._dispatch()

    def _is_busy(self, taker: Taker) -> None:
        if self.sends_ahead and taker.in_hand and taker not in self._busy:
            self._busy.append(taker)

    def leave(self, taker: Taker, handed_back: Sequence[Request] = ()) -> None:
        """`taker` takes no more batches; `handed_back` were sent to it and have not begun."""
        for takers in (self._idle, self._busy):
            if taker in takers:
                takers.remove(taker)
        self.put_back(handed_back)

    def began(self, request: Request) -> None:
        """Changes nothing."""

    def heard(self, headers: Sequence[Header]) -> None:
        """Changes nothing."""

    def finished(self, taker: Taker, requests: Sequence[Request], seconds: float | None) -> None:
        """`requests` no longer run; they took `seconds` if they ran to their end."""
        self._running -= len(requests)
        self._queue.ran(requests, seconds)
        if seconds is not None:
            self._wait.ran(seconds)
            self._cost = seconds if self._cost == math.inf else self._cost + COST_WEIGHT * (seconds - self._cost)

    @property
    def _most_ahead(self) -> int:
        """Batches that may stand behind the one a worker runs."""
        most = min(AHEAD_BATCHES, self._limit // (AHEAD_SHARE * self._size))
        if self._cost * most <= AHEAD_SECONDS:  # it may be 0
            return most
        return int(AHEAD_SECONDS / self._cost)

    def close(self, sequence: str) -> None:
        """There are no sequences here."""

    def release(self, request: Request) -> None:
        """A waiting request was cancelled or has expired."""
        self._queue.discard(request)
        self._dispatch()

    def credit(self, request: Request, size: int) -> None:
        """A waiting request has no answer to acknowledge."""

    def waiting(self) -> list[Request]:
        """Takes every waiting request out, for the one who must answer them all."""
        return self._queue.take_all()

    def _dispatch(self) -> None:
        """Sends every batch that can go now; sees to it that the one that cannot yet goes in time."""
        leaving = False
        while self._idle and (queued := len(self._queue)):
            now = self._clock.time()
            if self._collecting_since is None:
                self._collecting_since = now
                self._wait.opened(now)
                self._company.opened(now)
            goes_at = -math.inf if leaving else self._goes_at(queued)
            if goes_at > now:
                self._look_again(goes_at)
                return
            if not leaving:
                self._company.left(queued + self._running)
            self._send(self._idle.popleft(), now - self._collecting_since)
            self._collecting_since = None
            leaving = self._size == 1  # those who waited in company go in company, to whatever workers there are
        while self._busy and len(self._queue) >= self._size:
            taker = self._busy.popleft()
            if 0 < taker.in_hand <= self._most_ahead:  # else it has become idle since, or has enough
                self._send(taker, 0.0)

    def _goes_at(self, queued: int) -> float:
        """When the next batch goes to an idle worker."""
        if queued < self._size:
            return self._wait.until(self._queue.oldest().received_at, queued, self._running)
        if self._size == 1 and queued <= self._most_ahead and self._cost < COMPANY_BELOW_SECONDS and self.sends_ahead:
            return self._company.until(queued + self._running)
        return -math.inf

    def _look_again(self, when: float) -> None:
        """Nearly every request that comes puts it off: a timer that rings too early costs less than a new one each."""
        when = max(when, self._clock.time() + LEAST_TIMER_SECONDS)
        if self._timer is not None:
            if self._rings_at <= when:
                return
            self._timer.cancel()
        self._rings_at = when
        self._timer = self._clock.call_at(when, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._dispatch()

    def _send(self, taker: Taker, waited_seconds: float) -> None:
        batch = self._queue.take(taker.room or self._size)
        self._running += len(batch)
        self._wait.left(len(self._queue) + self._running)
        self._collecting_since = None
        taker.run(batch, waited_seconds)
        if taker.room:  # it stands behind the others: the load spreads
            self._idle.append(taker)
        else:
            self._is_busy(taker)
