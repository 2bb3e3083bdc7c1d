"""The processes that are one worker: its ranks, most often a single one.

They are one thing: the worker has loaded when all of them have, and the end of one is the end of all. The first, the
leader, is sent the requests and answers; the others hear from it what is to be done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

from torchd_protos.frames import FrameLimits, Load, Metric, Unload
from torchd_server import errors
from torchd_server.clock import Clock
from torchd_server.link import Receiver
from torchd_server.placement.base import Output, Placement, WorkerSpec
from torchd_server.rank import Rank, RankState

logger = logging.getLogger(__name__)

# A rank that has said why it leaves is killed if it is still there after this.
LEAVE_SECONDS = 5.0


class Owner(Protocol):
    """Who is told what becomes of a group."""

    def group_loading(self) -> None:
        """Every rank has said hello; told once."""

    def group_loaded(self) -> None:
        """Every rank has loaded; told once."""

    def group_gone(self) -> None:
        """Nothing more will come of any rank."""

    def measured(self, metric: Metric) -> None:
        """A handler has given a value."""


class Group:
    """Ranks that start, load and end together."""

    def __init__(self, owner: Owner, spec: WorkerSpec, identity: dict[str, str], clock: Clock) -> None:
        size = len(spec.ranks)
        self.ranks = tuple(Rank(self, number, size, spec.incarnation, identity, clock) for number in range(size))
        self.leader = self.ranks[0]
        self._owner = owner
        self._clock = clock
        # As far as all of its ranks.
        self._state = RankState.STARTING
        self._cause: errors.TorchdError | None = None
        # The rank that ended first though nobody had wished it.
        self._lost: Rank | None = None

    @property
    def progress(self) -> str:
        """How far loading is: as far as the rank that is least far."""
        if not any(rank.progress for rank in self.ranks):
            return ""
        last = min(self._late, key=lambda rank: rank.percent)
        return last.prefix + (last.progress or "0 %")

    @property
    def end(self) -> errors.TorchdError:
        """What it ended by."""
        return self._cause or errors.WorkerDied((self._lost or self.leader).end)

    @property
    def is_gone(self) -> bool:
        """Whether no process of it runs: one may after the end of the group, where no signal reached it."""
        return all(rank.is_gone for rank in self.ranks)

    def when_gone(self, tell: Callable[[], None]) -> None:
        """`tell` is called once no process of it runs any more."""
        left = [rank for rank in self.ranks if not rank.is_gone]

        def note(rank: Rank) -> None:
            left.remove(rank)
            if not left:
                tell()

        for rank in list(left):
            rank.when_gone(partial(note, rank))
        if not left:
            tell()

    async def start(
        self, placement: Placement, spec: WorkerSpec, output: Output, receiver: Receiver, limits: FrameLimits
    ) -> None:
        """Starts the processes and opens their links; `receiver` hears the leader. May raise OSError."""
        processes = await placement.launch(spec, output)
        for rank, process in zip(self.ranks, processes, strict=True):
            rank.began(process)
        self._check_wanted()
        for rank in self.ranks:
            await rank.connect(receiver if rank is self.leader else rank, limits)
            self._check_wanted()

    def _check_wanted(self) -> None:
        """Whoever killed it while its processes were being started found nothing to kill: that is made up for here."""
        if self._state is RankState.GONE:
            self.close()
            self._kill()
            raise self.end

    def load(self, load: Load) -> None:
        """Tells every rank what to load. Each sees the devices of all and takes the one of its number (LOCAL_RANK)."""
        for rank in self.ranks:
            alone = len(self.ranks) == 1 or load.gpu_id is None
            rank.send(load if alone else replace(load, gpu_id=rank.number))

    def unload(self) -> None:
        """Lets every rank leave by itself; what ends from now on ends as wished."""
        self._cause = errors.Draining("the worker")
        # The leader last: a rank that sees the leader's socket end has been told before that this is no accident.
        for rank in reversed(self.ranks):
            rank.send(Unload())

    def kill(self, cause: errors.TorchdError) -> None:
        """Ends every process; the first cause is the one that counts."""
        self._cause = self._cause or cause
        if self.leader.pid:
            self._kill()
        else:
            self._go()

    def _kill(self, but: Rank | None = None) -> None:
        for rank in self.ranks:
            if rank is not but:
                rank.kill()

    @property
    def late(self) -> str:
        """The ranks that have not loaded, as the beginning of a sentence; empty where there is one only."""
        return "".join(rank.prefix for rank in self._late)

    @property
    def _late(self) -> list[Rank]:
        return [rank for rank in self.ranks if rank.state is not RankState.LOADED]

    def dump_stacks(self) -> None:
        """Asks every rank for its threads' stacks: the one that hangs is not always the one that does not answer."""
        for rank in self.ranks:
            rank.dump_stacks()

    def close(self) -> None:
        """Gives back what belongs to it."""
        for rank in self.ranks:
            rank.close()

    def rank_changed(self, rank: Rank) -> None:
        """It is as far as all of its ranks. What they said before they died counts: such a model can be loaded."""
        if self._cause is not None:
            return
        states = {each.state for each in self.ranks}
        if self._state is RankState.STARTING and RankState.STARTING not in states:
            self._state = RankState.LOADING
            self._owner.group_loading()
        if self._state is RankState.LOADING and states == {RankState.LOADED}:
            self._state = RankState.LOADED
            self._owner.group_loaded()

    def leader_leaves(self, cause: errors.TorchdError) -> None:
        """The leader has said why it leaves by itself; the others are of no use without it."""
        self._blame(self.leader, cause)
        self._let_leave(self.leader)

    def rank_failed(self, rank: Rank, error: errors.LoadFailed) -> None:
        """A rank could not load. It leaves by itself; the others wait for it in vain."""
        self._blame(rank, error)
        self._let_leave(rank)
        if self._cause is not error:  # for want of the one that failed first
            logger.info("%s", error, extra=rank.identity)

    def _let_leave(self, rank: Rank) -> None:
        self._clock.call_at(self._clock.time() + LEAVE_SECONDS, rank.kill)

    def rank_ended(self, rank: Rank, error: errors.WorkerProtocolBroken | None) -> None:
        """A rank's process or link has ended: unless that was wished, it takes the others with it."""
        self._blame(rank, error)

    def _blame(self, rank: Rank, error: errors.TorchdError | None) -> None:
        """The first to end is the one to blame; its own words say more than its exit, whichever is heard first."""
        if self._cause is None and self._lost is None:
            self._lost = rank
            self._kill(but=rank)
        if self._lost is rank:
            self._cause = self._cause or error

    def rank_gone(self, rank: Rank) -> None:
        """The last one ends the group."""
        if all(each.state is RankState.GONE for each in self.ranks):
            self._go()

    def measured(self, metric: Metric) -> None:
        """A rank's handler has given a value."""
        self._owner.measured(metric)

    def _go(self) -> None:
        if self._state is not RankState.GONE:
            self._state = RankState.GONE
            self._owner.group_gone()
