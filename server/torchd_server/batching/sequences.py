"""Sequences: requests that belong together stay with one worker, in their order, because the handler keeps a state.

Each sequence is a lane. A lane lets one request at a time into its worker's own, ordinary batch policy, and the next
one when that has had its first answer; so a batch never holds two requests of a sequence, a sequence that was served
stands behind the others, and whatever is true of batches without sequences is true here. What ends a lane:

    an end header, of a request that was answered or on an answer     the id is free again
    idle or open for too long                                          waiting requests: SequenceClosed
    its worker left                                                    waiting requests: SequenceLost

A sequence of which nothing has begun has no state to lose: it moves to another worker. A client that goes on with a
sequence that was closed by time or lost hears of it once; a request with the start header begins anew at once.
"""

from __future__ import annotations

import math
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torchd_protos.frames import Call, Header
from torchd_server import errors
from torchd_server.batching.base import Taker
from torchd_server.batching.policy import BatchPolicy
from torchd_server.batching.queues import Fifo
from torchd_server.batching.turns import Turn
from torchd_server.batching.waits import BatchWait
from torchd_server.clock import Clock, Timer
from torchd_server.request import Request, State
from torchd_server.settings import SequenceHeaders

# Sequences that ended by themselves and whose clients have not been told.
REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class SequenceLimits:
    """How many sequences may be open, how many requests of one may wait, and for how long. Times in seconds."""

    sequences: int
    waiting: int
    idle: float = math.inf
    age: float = math.inf


class _Lane:
    """One open sequence. `current` is its request that its worker's policy has and that has no answer yet."""

    def __init__(self, sequence: str, now: float) -> None:
        self.sequence = sequence
        self.waiting: deque[Request] = deque()
        self.current: Request | None = None
        # What went to its worker and has not had its last answer.
        self.running: set[Request] = set()
        self.home: _Home | None = None
        self.has_state = False
        self.ending = False
        self.opened_at = self.idle_since = now
        self.timer: Timer | None = None

    @property
    def queued(self) -> int:
        """Its requests that wait."""
        return len(self.waiting) + (self.current is not None and self.current.state is State.QUEUED)

    @property
    def is_idle(self) -> bool:
        """Whether none of its requests waits or runs."""
        return not (self.waiting or self.current or self.running)


class _Home(BatchPolicy):
    """The batch policy of one worker and of the sequences that stay with it."""

    # A sequence's next request must not wait behind a batch that could have held it.
    sends_ahead = False

    def __init__(
        self,
        taker: Taker,
        size: int,
        limit: int,
        wait: BatchWait,
        clock: Clock,
        turn: Turn,
        unsent: Callable[[Request], None],
    ) -> None:
        super().__init__(Fifo(), size, limit, wait, clock, turn)
        self.taker = taker
        self.lanes = 0
        self._unsent = unsent

    def release(self, request: Request) -> None:
        """A request was cancelled or has expired before it was sent: its lane goes on."""
        super().release(request)
        self._unsent(request)


class SequencePolicy:
    """The open sequences of one model version, each with its worker, and the policy of each worker."""

    def __init__(
        self,
        limits: SequenceLimits,
        size: int,
        limit: int,
        make_wait: Callable[[], BatchWait],
        clock: Clock,
        turn: Turn,
        headers: SequenceHeaders,
        model: tuple[str, str],
    ) -> None:
        self.turn = turn
        self._limits = limits
        self._size = size
        self._limit = limit
        self._make_wait = make_wait
        self._clock = clock
        self._headers = headers
        self._model = model
        self._lanes: dict[str, _Lane] = {}
        # The lane of every request that waits or runs.
        self._lane_of: dict[Request, _Lane] = {}
        self._homes: dict[Taker, _Home] = {}
        # How sequences ended whose clients do not know it yet.
        self._ended: dict[str, type[errors.SequenceEnded]] = {}

    @property
    def open(self) -> int:
        """Sequences that are open."""
        return len(self._lanes)

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._lane_of) - sum(home.running for home in self._homes.values())

    @property
    def room(self) -> int:
        """Requests that may still be queued."""
        return max(0, self._limit - self.depth)

    @property
    def tickets(self) -> int:
        """Requests that would go to a worker at once."""
        return sum(home.tickets for home in self._homes.values())

    def admit(self, call: Call) -> Call:
        """The call with its sequence's id, and the start header where it opens one; raises what stands against it."""
        sequence = self._header(call, self._headers.id)
        starts = not sequence or _is_true(self._header(call, self._headers.start))
        added = []
        if not sequence:
            sequence = f"ts-seq-{uuid.uuid4()}"
            added.append(Header(self._headers.id, sequence))
        lane = self._lanes.get(sequence)
        ended = self._ended.pop(sequence, None)
        if lane is None:
            if ended is not None and not starts:
                raise ended(*self._model, sequence)
            if len(self._lanes) >= self._limits.sequences:
                raise errors.TooManySequences(*self._model, self._limits.sequences)
            if not _is_true(self._header(call, self._headers.start)):
                added.append(Header(self._headers.start, "true"))
        elif lane.ending:
            raise errors.SequenceClosed(*self._model, sequence)
        elif lane.queued >= self._limits.waiting:
            raise errors.SequenceFull(*self._model, sequence, self._limits.waiting)
        return replace(call, headers=[*call.headers, *added]) if added else call

    def resize(self, turn: Turn, size: int, limit: int, make_wait: Callable[[], BatchWait]) -> None:
        """From now on batches have this size, the queue this limit, and waiting this rule."""
        self.turn, self._size, self._limit, self._make_wait = turn, size, limit, make_wait
        for home in self._homes.values():
            home.resize(turn, size, limit, make_wait)

    def put(self, request: Request) -> None:
        """Queues a request whose call was admitted a moment ago."""
        sequence = self._header(request.call, self._headers.id)
        lane = self._lanes.get(sequence)
        if lane is None:
            lane = self._lanes[sequence] = _Lane(sequence, self._clock.time())
            self._set_timer(lane)
        lane.ending = _is_true(self._header(request.call, self._headers.end))
        request.queued(self)
        self._lane_of[request] = lane
        lane.waiting.append(request)
        self._settle(lane)

    def has_room(self, taker: Taker) -> None:
        """`taker` has room; a new one gets the sequences that have no worker yet."""
        home = self._homes.get(taker)
        if home is None:
            home = self._homes[taker] = _Home(
                taker, self._size, self._limit, self._make_wait(), self._clock, self.turn, self._unsent
            )
            self._find_homes()
        home.has_room(taker)

    def leave(self, taker: Taker, handed_back: Sequence[Request] = ()) -> None:
        """`taker` and the states it keeps are gone. Sequences of which nothing had begun go elsewhere."""
        home = self._homes.pop(taker, None)
        if home is None:  # it was let go before and died since: its sequences were told then
            for request in handed_back:
                request.finish(errors.SequenceLost(*self._model, self._header(request.call, self._headers.id)))
            return
        home.leave(taker)
        unsent = {*handed_back, *home.waiting()}
        for lane in [lane for lane in self._lanes.values() if lane.home is home]:
            back = lane.running & unsent  # one at most: the next one goes when it has begun
            gone = lane.running - unsent
            lane.home = lane.current = None
            lane.running = set()
            for request in gone:
                del self._lane_of[request]
            for request in back:
                request.queued(self)
                lane.waiting.appendleft(request)
            if lane.has_state or gone:
                self._forget(lane)
                self._tell(lane, errors.SequenceLost)
        self._find_homes()

    def began(self, request: Request) -> None:
        """The first of several answers to a request: the next of its sequence may join."""
        lane = self._lane_of.get(request)
        if lane is not None:
            lane.has_state = True
            self._pass(lane, request)

    def heard(self, headers: Sequence[Header]) -> None:
        """A handler ends sequences by a header of its answer: their ids, separated by semicolons."""
        for header in headers:
            if header.name.lower() == self._headers.end.lower():
                for sequence in header.value.split(";"):
                    lane = self._lanes.get(sequence.strip())
                    if lane is not None:
                        self._end(lane)

    def finished(self, taker: Taker, requests: Sequence[Request], seconds: float | None) -> None:
        """`requests` no longer run: the next of their sequences may go."""
        home = self._homes.get(taker)
        if home is None:
            return
        home.finished(taker, requests, seconds)
        if seconds is None:  # the worker is dying; `leave` follows and says which had not begun
            return
        for request in requests:
            lane = self._lane_of.pop(request, None)
            if lane is not None:
                lane.running.discard(request)
                lane.has_state = True
                self._pass(lane, request)

    def waiting(self) -> list[Request]:
        """Takes every waiting request out, for the one who must answer them all."""
        taken = [request for home in self._homes.values() for request in home.waiting()]
        taken += [request for lane in self._lanes.values() for request in lane.waiting]
        for request in taken:
            lane = self._lane_of.pop(request)
            lane.running.discard(request)
            lane.waiting.clear()
            self._pass(lane, request)
        return sorted(taken, key=lambda request: request.number)

    def close(self, sequence: str) -> None:
        """Ends a sequence whose client has left; what runs of it runs to its end."""
        lane = self._lanes.get(sequence)
        if lane is not None:
            self._end(lane)

    def release(self, request: Request) -> None:
        """A request was cancelled or has expired while it waited in its lane."""
        lane = self._lane_of.pop(request, None)
        if lane is not None:
            lane.waiting.remove(request)
            self._settle(lane)

    def credit(self, request: Request, size: int) -> None:
        """A waiting request has no answer to acknowledge."""

    def _unsent(self, request: Request) -> None:
        """A request was cancelled or has expired in its worker's queue."""
        lane = self._lane_of.pop(request, None)
        if lane is not None:
            lane.running.discard(request)
            self._pass(lane, request)

    def _pass(self, lane: _Lane, request: Request) -> None:
        """A request stands in its sequence's way no longer."""
        if lane.current is request:
            lane.current = None
        self._settle(lane)

    def _find_homes(self) -> None:
        for lane in [lane for lane in self._lanes.values() if lane.home is None]:
            self._settle(lane)

    def _settle(self, lane: _Lane) -> None:
        """Brings a lane as far as it can go: to a worker, to its next request, to its end."""
        if self._lanes.get(lane.sequence) is not lane:
            return
        if lane.home is None and self._homes:
            # The one with the fewest sequences; of these, one that has room.
            lane.home = min(self._homes.values(), key=lambda home: (home.lanes, not home.taker.room))
            lane.home.lanes += 1
        if lane.home is not None and lane.current is None and lane.waiting:
            request = lane.current = lane.waiting.popleft()
            lane.running.add(request)
            lane.home.put(request)
        elif lane.is_idle:
            lane.idle_since = self._clock.time()
            if lane.ending:
                self._forget(lane)

    def _end(self, lane: _Lane) -> None:
        """Lets nothing more in: who waits is told, what runs runs to its end, which is the lane's."""
        lane.ending = True
        self._answer(lane, errors.SequenceClosed)
        self._settle(lane)

    def _tell(self, lane: _Lane, error: type[errors.SequenceEnded]) -> None:
        """Its waiting clients hear how a sequence ended, or else the next that comes with it."""
        if self._answer(lane, error):
            return
        self._ended[lane.sequence] = error
        if len(self._ended) > REMEMBERED:
            del self._ended[next(iter(self._ended))]

    def _answer(self, lane: _Lane, error: type[errors.SequenceEnded]) -> int:
        waiting = list(lane.waiting)
        if lane.current is not None and lane.current.state is State.QUEUED:
            waiting.append(lane.current)
        for request in waiting:  # each leaves by its owner's `release`
            request.finish(error(*self._model, lane.sequence))
        return len(waiting)

    def _forget(self, lane: _Lane) -> None:
        del self._lanes[lane.sequence]
        if lane.home is not None:
            lane.home.lanes -= 1
        if lane.timer is not None:
            lane.timer.cancel()

    def _set_timer(self, lane: _Lane) -> None:
        due = min(lane.opened_at + self._limits.age, lane.idle_since + self._limits.idle)
        if not math.isinf(due):
            lane.timer = self._clock.call_at(due, lambda: self._check_time(lane))

    def _check_time(self, lane: _Lane) -> None:
        now = self._clock.time()
        if not lane.is_idle:
            lane.idle_since = now
        if now < min(lane.opened_at + self._limits.age, lane.idle_since + self._limits.idle):
            self._set_timer(lane)
            return
        lane.timer = None
        lane.ending = True
        self._tell(lane, errors.SequenceClosed)
        self._settle(lane)

    @staticmethod
    def _header(call: Call, name: str) -> str:
        wanted = name.lower()
        return next((header.value for header in reversed(call.headers) if header.name.lower() == wanted), "")


def _is_true(value: str) -> bool:
    return value.strip().lower() == "true"
