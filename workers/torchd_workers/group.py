"""The processes that are one worker together: what each rank's handler finds as `context.group`.

Rank 0, the leader, has a socket to every other rank, the followers (leader.py, follower.py). After a call that went
well nobody waits for anybody. After one that raised, the ranks compare: all failed, they go on; else they are out of
step, and the worker leaves, for a rank that waits in a collective for one that is elsewhere would wait for ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from time import sleep
from typing import Any, NoReturn

from torchd_protos.frames import Buffer
from torchd_workers.peers import Peer

# How long a rank whose call raised waits for what the others say of it.
PATIENCE_SECONDS = 10.0
# The daemon kills the rest of a group of which one has gone, and says why it went; who is still there then leaves.
GONE_SECONDS = 2.0
# The task by which the leader's value comes to every rank.
SHARE = "torchd.agree"

_RESERVED = "torchd."

Action = Callable[[dict[str, Any], memoryview], object]
Leave = Callable[[str], NoReturn]

_sleep = sleep


class OutOfStep(RuntimeError):
    """The other ranks are at another point than this one."""


class Group:
    """One rank's place among the processes that are its worker. Handlers find it as `context.group`."""

    def __init__(self, rank: int, size: int, same_rows: bool, leave: Leave) -> None:
        """`same_rows`: every rank's handler is called with what the leader's is; else the leader's alone is called."""
        self.rank = rank
        self.size = size
        self.same_rows = same_rows
        # Calls of the handler since the start, the running one included: the same number on every rank.
        self.calls = 0
        self.dismissed = False
        self.leave = leave
        self._forked = False
        self._actions: dict[str, Action] = {}
        os.register_at_fork(after_in_child=self._leave_to_parent)

    @property
    def is_leader(self) -> bool:
        """Whether requests come to this rank, and answers leave from it."""
        return self.rank == 0

    def serve(self, name: str, action: Action) -> None:
        """When the leader calls `name`, a follower runs `action(arguments, body)` in its main thread.

        Where every rank is called with the same rows it runs between two calls of the handler. One that raises ends the
        worker: the leader may be waiting for it.
        """
        if name.startswith(_RESERVED):
            raise ValueError(f"the name {name!r} is torchd's; take one that does not begin with {_RESERVED!r}")
        self._actions[name] = action

    def call(self, name: str, arguments: Mapping[str, Any] | None = None, body: Buffer = b"") -> None:
        """Leader: lets every follower do `name`, in the order of the calls, and returns at once.

        `arguments` is what JSON takes. The leader's own part is its own business.
        """
        raise RuntimeError(
            f"only the leader calls; this is rank {self.rank} of {self.size}, which cannot call {name!r}"
        )

    def share(self, value: Any) -> Any:
        """The leader's value, which is what JSON takes, on every rank; every rank calls this at the same point."""
        raise NotImplementedError

    def agree(self, flags: Sequence[bool]) -> list[bool]:
        """The leader's flags on every rank; every rank calls this at the same point, and only the leader's count."""
        return [bool(flag) for flag in self.share([bool(flag) for flag in flags])]

    def connections(self) -> Sequence[Peer]:
        """The sockets to other ranks that this one has."""
        raise NotImplementedError

    def _leave_to_parent(self) -> None:
        """In a child that user code forked: the sockets are the parent's, and would outlive it here."""
        self._forked = True
        for peer in self.connections():
            peer.close()

    def check_is_rank(self) -> None:
        """Raises in a process that user code forked: the group's sockets are not its own."""
        if self._forked:
            raise RuntimeError(f"a process forked by rank {self.rank} is no rank itself")

    def lose(self, peer: Peer) -> None:
        """The other end is closed: its process has died. The daemon saw that too, and says more than we could."""
        if self.dismissed:
            return
        _sleep(GONE_SECONDS)
        self.leave(f"rank {peer.rank} of its group has gone")
