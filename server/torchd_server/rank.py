"""One process of a worker, and its link. Most workers are one rank; a model split over several processes has more.

    STARTING --hello--> LOADING --loaded--> LOADED
        \\_________________\\________________\\--> GONE

A rank says what becomes of it; what follows for the others is its worker's to decide.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable
from typing import Protocol

from torchd_protos.frames import (
    PROTOCOL_VERSION,
    FrameLimits,
    Hello,
    Loaded,
    LoadFailed,
    Log,
    Message,
    Metric,
    Progress,
    ProtocolError,
)
from torchd_server import errors
from torchd_server.clock import Clock
from torchd_server.link import Link, Receiver, load_error_of
from torchd_server.placement.base import Exit, WorkerProcess

logger = logging.getLogger(__name__)
model_logger = logging.getLogger("torchd.model")

# A killed process that the kernel will not let go is given up after this.
ABANDON_SECONDS = 5.0
# What a dead process wrote is read for so long, should something it left behind hold its socket or pipes open.
LAST_WORDS_SECONDS = 0.2


class RankState(enum.Enum):
    """Where a rank is in its life."""

    STARTING = "starting"
    LOADING = "loading"
    LOADED = "loaded"
    GONE = "gone"


class Owner(Protocol):
    """Who is told what becomes of a rank."""

    def rank_changed(self, rank: Rank) -> None:
        """It has said hello, or has loaded."""

    def rank_failed(self, rank: Rank, error: errors.LoadFailed) -> None:
        """It could not load, and leaves by itself."""

    def rank_ended(self, rank: Rank, error: errors.WorkerProtocolBroken | None) -> None:
        """Its process or its link has ended, which may be told of both; `error` if it broke the protocol."""

    def rank_gone(self, rank: Rank) -> None:
        """Nothing more will come of it; told once."""

    def measured(self, metric: Metric) -> None:
        """Its handler has given a value."""


class Rank:
    """A process with a number among those of its worker. `identity` is what its log records carry."""

    def __init__(
        self, owner: Owner, number: int, size: int, incarnation: int, identity: dict[str, str], clock: Clock
    ) -> None:
        self.number = number
        self.state = RankState.STARTING
        # How far loading is: what it said last.
        self.percent = 0
        self.doing = ""
        self.link: Link | None = None
        # What its handler has said of itself.
        self.loaded = Loaded()
        # In front of what is said of it, where there are others.
        self.prefix = f"rank {number}: " if size > 1 else ""
        self.identity = {**identity, "rank": str(number)} if size > 1 else identity
        self._owner = owner
        self._incarnation = incarnation
        self._clock = clock
        self._process: WorkerProcess | None = None
        self._exit: Exit | None = None
        self._link_is_lost = False

    @property
    def pid(self) -> int:
        """Its process, 0 before there is one."""
        return self._process.pid if self._process is not None else 0

    @property
    def begun(self) -> int:
        """Number of the last batch it has begun, 0 before there is one."""
        return self._process.begun if self._process is not None else 0

    @property
    def progress(self) -> str:
        """How far loading is, in words; empty if it has said nothing or is done."""
        if self.state is not RankState.LOADING or not (self.percent or self.doing):
            return ""
        return f"{self.percent} % {self.doing}".strip()

    @property
    def is_gone(self) -> bool:
        """Whether it has no process that runs."""
        return self._process is None or self._process.exited.done()

    def when_gone(self, tell: Callable[[], None]) -> None:
        """`tell` is called once its process runs no more."""
        if self._process is not None:
            self._process.exited.add_done_callback(lambda _: tell())

    @property
    def end(self) -> str:
        """How it ended, in words."""
        return f"{self.prefix}the worker process {self._exit or 'could not be ended: abandoned'}"

    def began(self, process: WorkerProcess) -> None:
        """It has a process."""
        self._process = process
        process.exited.add_done_callback(self._exited)

    async def connect(self, receiver: Receiver, limits: FrameLimits) -> None:
        """Opens its link. A receiver other than the rank hands it `link_lost`, and the messages it does not take."""
        if self._process is not None:
            self.link = await Link.open(self._process.socket, receiver, limits)

    def send(self, message: Message) -> None:
        """Tells it something, if it can hear."""
        if self.link is not None:
            self.link.send(message)

    def kill(self) -> None:
        """Ends its process; the exit leads to `rank_gone`, or the time in which the kernel did not let it go."""
        # The number of a process that has exited may be another's.
        if self._process is not None and not self._process.exited.done():
            self._process.kill()
            self._clock.call_at(self._clock.time() + ABANDON_SECONDS, self._go)

    def dump_stacks(self) -> None:
        """Asks for its threads' stacks on its standard error."""
        if self._process is not None:
            self._process.dump_stacks()

    def close(self) -> None:
        """Gives back what belongs to it, its last words read."""
        if self.link is not None:
            self.link.close()
        if self._process is not None:
            self._clock.call_at(self._clock.time() + LAST_WORDS_SECONDS, self._process.close)

    def received(self, message: Message) -> None:
        """What it says of itself. A message that has no business here is a ProtocolError, which ends the worker."""
        match message:
            case Log():
                origin = {**self.identity, "request": message.request_id, "handler_logger": message.logger}
                model_logger.log(message.level, "%s", message.text, extra=origin)
            case Metric():
                self._owner.measured(message)
            case Progress():
                self._progress(message)
            case Hello():
                self._hello(message)
            case Loaded():
                self.loaded = message
                self._pass(RankState.LOADING, RankState.LOADED, "loaded")
            case LoadFailed():
                self._load_failed(message)
            case _:
                speaker = "a rank beside the leader" if self.number else "a worker"
                raise ProtocolError(f"{speaker} does not say {type(message).__name__}")

    def link_lost(self, error: ProtocolError | OSError | None) -> None:
        """The socket ended: the process has died, or is of no use any more and is killed."""
        self._link_is_lost = True
        broken = isinstance(error, ProtocolError)
        text = f"{self.prefix}the worker broke the protocol: {error}"
        self._owner.rank_ended(self, errors.WorkerProtocolBroken(text) if broken else None)
        if self._exit is not None:
            self._go()
        else:
            self.kill()

    def _hello(self, hello: Hello) -> None:
        if hello.protocol != PROTOCOL_VERSION:
            raise ProtocolError(f"the worker speaks protocol {hello.protocol}, the daemon {PROTOCOL_VERSION}")
        said, started = (hello.incarnation, hello.rank), (self._incarnation, self.number)
        if said != started:
            raise ProtocolError(
                "the worker says it is {}, rank {}, but {}, rank {}, was started".format(*said, *started)
            )
        self._pass(RankState.STARTING, RankState.LOADING, "hello")

    def _pass(self, before: RankState, after: RankState, word: str) -> None:
        if self.state is not before:
            raise ProtocolError(f"{word} while {self.state.value}")
        self.state = after
        self._owner.rank_changed(self)

    def _load_failed(self, failure: LoadFailed) -> None:
        if self.state not in (RankState.LOADING, RankState.GONE):
            raise ProtocolError(f"a load that failed while {self.state.value}")
        error = load_error_of(failure)
        self._owner.rank_failed(self, type(error)(f"{self.prefix}{error}", error.traceback))

    def _progress(self, progress: Progress) -> None:
        if progress.percent != self.percent:
            logger.info("loading: %d %% %s", progress.percent, progress.text, extra=self.identity)
        self.percent, self.doing = progress.percent, progress.text

    def _exited(self, future: asyncio.Future[Exit]) -> None:
        if future.cancelled():
            return
        self._exit = future.result()
        self._owner.rank_ended(self, None)
        if self._link_is_lost or self.link is None:
            self._go()
        else:  # its last frames may still be on their way
            self._clock.call_at(self._clock.time() + LAST_WORDS_SECONDS, self._go)

    def _go(self) -> None:
        if self.state is RankState.GONE:
            return
        self.state = RankState.GONE
        self._owner.rank_gone(self)
