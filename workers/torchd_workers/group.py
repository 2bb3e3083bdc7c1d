"""The processes that are one worker together: what the leader tells the others, and how they find out they differ.

Rank 0, the leader, has a socket to every other rank, the followers. After a call that went well nobody waits for
anybody. After one that raised, the ranks compare: all failed, they go on; else they are out of step, and the worker
leaves, for a rank that waits in a collective for one that is elsewhere would wait for ever.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from json import JSONDecoder, JSONEncoder
from socket import socket
from threading import Condition, Lock, Semaphore, Thread
from time import monotonic, sleep
from typing import Any, NoReturn, Protocol

from torchd_protos.frames import Batch, Buffer, Load, Message, Outcome, Settings, Step, Task, Unload
from torchd_workers.channel import Channel
from torchd_workers.context import Context
from torchd_workers.peers import Peer

# How long a rank whose call raised waits for what the others say of it.
PATIENCE_SECONDS = 10.0
# The daemon kills the rest of a group of which one has gone, and says why it went; who is still there then leaves.
GONE_SECONDS = 2.0
# Messages that a follower takes off its socket before it has done what they say.
AHEAD = 64

_AGREE = "torchd.agree"
_RESERVED = "torchd."

Action = Callable[[dict[str, Any], memoryview], object]
Leave = Callable[[str], NoReturn]

_encode = JSONEncoder().encode
_decode = JSONDecoder().decode
_sleep = sleep
_now = monotonic


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
        self._leave = leave
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

    def _connections(self) -> Sequence[Peer]:
        raise NotImplementedError

    def _leave_to_parent(self) -> None:
        """In a child that user code forked: the sockets are the parent's, and would outlive it here."""
        self._forked = True
        for peer in self._connections():
            peer.close()

    def _check_rank(self) -> None:
        if self._forked:
            raise RuntimeError(f"a process forked by rank {self.rank} is no rank itself")

    def _lost(self, peer: Peer) -> None:
        """The other end is closed. Its process has died; the daemon saw that too and says more than we could."""
        if self.dismissed:
            return
        _sleep(GONE_SECONDS)
        self._leave(f"rank {peer.rank} of its group has gone")


class LeaderGroup(Group):
    """The end that tells. Only its main thread calls `begin` and `end`; handlers call from any."""

    def __init__(
        self, peers: Sequence[Peer], same_rows: bool, leave: Leave, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        """`peers` are the followers, rank 1 first."""
        self._peers = peers
        super().__init__(0, len(peers) + 1, same_rows, leave)
        self._patience = patience_seconds
        self._sending = Lock()
        # Whether a follower may still be at what the running call asked for.
        self._asked = False
        self._changed = Condition()
        self._outcomes: dict[int, Outcome] = {}
        self._ended_well = 0

    def start(self) -> None:
        """Starts listening to the followers."""
        for peer in self._peers:
            Thread(target=self._listen, args=(peer,), name=f"torchd-rank-{peer.rank}", daemon=True).start()

    def call(self, name: str, arguments: Mapping[str, Any] | None = None, body: Buffer = b"") -> None:
        """See Group.call."""
        self._check_rank()
        self._asked = True
        self._send(Task(name, _encode(dict(arguments or {})), body))

    def share(self, value: Any) -> Any:
        """See Group.share. Gives what the others get: a tuple has become a list."""
        self._check_rank()
        text = _encode(value)
        self._send(Task(_AGREE, text))
        return _decode(text)

    def pass_on(self, batch: Batch) -> None:
        """These join the calls that follow, where every rank is called with the same rows."""
        if self.same_rows:
            self._send(batch)

    def begin(self, message: Batch | Step, context: Context) -> None:
        """A call of the handler begins; where every rank is called with the same rows, this says with which."""
        self.calls += 1
        self._asked = self.same_rows
        if self.same_rows:
            self._send(message)
            context.agree()

    def end(self, failed: bool) -> None:
        """The call has ended. If it raised, waits until every follower is known to stand where this rank stands."""
        if failed and self._asked:
            self._settle()
        with self._changed:
            if not failed:
                self._ended_well = self.calls
            alone = [peer for peer in self._peers if not failed and self._has_failed(peer)]
        for peer in alone:
            self._tell_it_went_well(peer)

    def dismiss(self) -> None:
        """The worker ends in order: the followers leave when they have done what they were told before."""
        self.dismissed = True
        self._send(Unload())

    def hear(self, peer: Peer, message: Message) -> None:
        """Takes what a follower has said; called by the thread that listens to it."""
        if not isinstance(message, Outcome):
            self._leave(f"rank {peer.rank} sent a {type(message).__name__} out of turn")
        with self._changed:
            self._outcomes[peer.rank] = message
            late = message.failed and message.number <= self._ended_well
            self._changed.notify_all()
        if late:
            self._tell_it_went_well(peer)

    def _settle(self) -> None:
        self._send(Outcome(self.calls, True))
        end = _now() + self._patience
        for peer in self._peers:
            with self._changed:
                self._changed.wait_for(partial(self._has_spoken, peer), max(0.0, end - _now()))
                outcome = self._outcomes.get(peer.rank)
            if outcome is None or outcome.number != self.calls:
                self._leave(
                    f"the ranks are out of step: call {self.calls} of the handler raised on rank 0, and after "
                    f"{self._patience:g} s rank {peer.rank} has not said how it ended there"
                )
            # Where the leader alone is called, a follower only says that it is back from its tasks.
            if self.same_rows and not outcome.failed:
                self._leave(
                    f"the ranks are out of step: call {self.calls} of the handler raised on rank 0 "
                    f"and did not on rank {peer.rank}"
                )

    def _has_spoken(self, peer: Peer) -> bool:
        outcome = self._outcomes.get(peer.rank)
        return outcome is not None and outcome.number == self.calls

    def _has_failed(self, peer: Peer) -> bool:
        outcome = self._outcomes.get(peer.rank)
        return outcome is not None and outcome.failed and outcome.number == self.calls

    def _tell_it_went_well(self, peer: Peer) -> None:
        """To a follower whose call raised: it leaves at once and shows why, and need not wait first."""
        self._send(Outcome(self.calls, False), [peer])

    def _listen(self, peer: Peer) -> None:
        try:
            for message in peer.messages():
                self.hear(peer, message)
        except Exception as error:
            self._leave(f"cannot read from rank {peer.rank}: {type(error).__name__}: {error}")
        self._lost(peer)

    def _send(self, message: Message, peers: Sequence[Peer] = ()) -> None:
        # This waits while a follower is AHEAD messages behind and its socket is full. It ends when the follower goes
        # on, when it dies, or when the daemon's clock for the request that is being served kills the whole group: a
        # follower that is stuck for ever is the same to a client as a handler that is.
        with self._sending:
            for peer in peers or self._peers:
                try:
                    peer.send(message)
                except OSError:
                    self._lost(peer)

    def _connections(self) -> Sequence[Peer]:
        return self._peers


class Inbox(Protocol):
    """Where a follower's main thread finds what daemon and leader say (channel.Channel)."""

    def put(self, message: Message) -> None: ...
    def receive(self) -> Message: ...
    def receive_within(self, seconds: float) -> Message | None: ...


class FollowerGroup(Group):
    """The end that is told."""

    def __init__(
        self,
        rank: int,
        size: int,
        leader: Peer,
        inbox: Inbox,
        same_rows: bool,
        leave: Leave,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._leader = leader
        super().__init__(rank, size, same_rows, leave)
        self._inbox = inbox
        self._patience = patience_seconds
        self._room = Semaphore(AHEAD)
        # What came while the handler waited for something else, in order.
        self._deferred: deque[Message] = deque()

    def start(self) -> None:
        """Starts listening to the leader."""
        Thread(target=self._listen, name="torchd-leader", daemon=True).start()

    def receive(self) -> Message:
        """Waits for the next thing to do: Batch, Step, Task, Outcome, Settings; Unload once the leader leaves."""
        while True:
            message = self._deferred.popleft() if self._deferred else self._taken(self._inbox.receive())
            # The daemon says Unload to every rank. The leader may have requests left, for which it needs this one.
            if not isinstance(message, Unload) or self.dismissed:
                return message

    def share(self, value: Any) -> Any:
        """See Group.share."""
        self._check_rank()
        message = self._next(None)
        if not (isinstance(message, Task) and message.name == _AGREE):
            self._cannot_agree(message)
        return _decode(message.arguments_json)

    def _cannot_agree(self, message: Message | None) -> NoReturn:
        if isinstance(message, Unload) or (isinstance(message, Outcome) and message.failed):
            self._deferred.appendleft(message)
            raise OutOfStep("the leader has ended this call of the handler, which is still at work on this rank")
        told = f"the task {message.name!r}" if isinstance(message, Task) else f"a {type(message).__name__}"
        self._leave(
            f"the ranks are out of step: rank {self.rank} waited to agree with the leader, which went on with {told}"
        )

    def run(self, task: Task) -> None:
        """Does what the leader called; raises what that raises."""
        if task.name == _AGREE:
            return  # nobody here has asked: the leader's handler alone was called, or this rank's had raised before
        action = self._actions.get(task.name)
        if action is None:
            known = ", ".join(self._actions) or "none"
            raise LookupError(
                f"the leader called {task.name!r}, which rank {self.rank} does not serve (served: {known})"
            )
        action(_decode(task.arguments_json or "{}"), memoryview(task.body))

    def answer(self, outcome: Outcome) -> None:
        """The leader's call has raised. This rank is back from its own, which did not, or from the leader's tasks."""
        if outcome.failed:
            self._send(Outcome(outcome.number, False))

    def fail(self, traceback: str) -> None:
        """The running call has raised here: returns if it has on the leader, else leaves."""
        self._send(Outcome(self.calls, True))
        end = _now() + self._patience
        while (left := end - _now()) > 0 and (message := self._next(left)) is not None:
            match message:
                case Outcome(number=number, failed=True) if number == self.calls:
                    return
                case Unload():
                    self._deferred.appendleft(message)
                    return
                case Task():
                    continue  # of the call that raised here
                case _:
                    break
        self._leave(
            f"the ranks are out of step: call {self.calls} of the handler raised on rank {self.rank} "
            f"and did not on rank 0\n{traceback}"
        )

    def _next(self, seconds: float | None) -> Message | None:
        """What the leader says next; what the daemon says meanwhile waits for the end of the call."""
        if self._deferred and not isinstance(self._deferred[0], Settings):
            return self._deferred.popleft()
        while True:
            message = self._inbox.receive() if seconds is None else self._inbox.receive_within(seconds)
            if message is None:
                return None
            match self._taken(message):
                case Settings() as settings:
                    self._deferred.append(settings)
                case Unload() if not self.dismissed:
                    pass
                case told:
                    return told

    def _taken(self, message: Message) -> Message:
        if isinstance(message, Batch | Step | Task | Outcome):
            self._room.release()
        return message

    def _listen(self) -> None:
        try:
            for message in self._leader.messages():
                if isinstance(message, Unload):
                    self.dismissed = True
                elif isinstance(message, Batch | Step | Task | Outcome):
                    self._room.acquire()
                else:
                    self._leave(f"the leader sent a {type(message).__name__} out of turn")
                self._inbox.put(message)
        except Exception as error:
            self._leave(f"cannot read from the leader: {type(error).__name__}: {error}")
        self._lost(self._leader)

    def _send(self, message: Message) -> None:
        try:
            self._leader.send(message)
        except OSError:
            self._lost(self._leader)

    def _connections(self) -> Sequence[Peer]:
        return [self._leader]


def group_of(sockets: Sequence[socket], rank: int, load: Load, channel: Channel) -> LeaderGroup | FollowerGroup:
    """This rank's end of the group that `load` describes; `sockets` are those to the followers, or the leader's."""
    same_rows = load.parallel != "pp"
    if rank == 0:
        return LeaderGroup([Peer(of, each) for of, each in enumerate(sockets, 1)], same_rows, channel.leave)
    (leader,) = sockets
    return FollowerGroup(rank, load.ranks, Peer(0, leader), channel, same_rows, channel.leave)
