"""The leader's end of a group of ranks: it tells, and after a call that raised it asks how it ended elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from json import JSONDecoder, JSONEncoder
from threading import Condition, Lock, Thread
from time import monotonic
from typing import Any

from torchd_protos.frames import Batch, Buffer, Message, Outcome, Step, Task, Unload
from torchd_workers.context import Context
from torchd_workers.group import PATIENCE_SECONDS, SHARE, Group, Leave
from torchd_workers.peers import Peer

# A rank that dies breaks the collective of the others, who may see that before they see its socket end.
DEATH_SHOWS_SECONDS = 0.5

_encode = JSONEncoder().encode
_decode = JSONDecoder().decode
_now = monotonic


class LeaderGroup(Group):
    """Rank 0. Only its main thread calls `begin` and `end`; handlers call from any."""

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
        # The last call that the followers were told has raised.
        self._told_raised = 0
        self._is_broken = False

    def start(self) -> None:
        """Starts listening to the followers."""
        for peer in self._peers:
            Thread(target=self._listen, args=(peer,), name=f"torchd-rank-{peer.rank}", daemon=True).start()

    def call(self, name: str, arguments: Mapping[str, Any] | None = None, body: Buffer = b"") -> None:
        """See Group.call."""
        self.check_is_rank()
        self._asked = True
        self._send(Task(name, _encode(dict(arguments or {})), body))

    def share(self, value: Any) -> Any:
        """See Group.share. Gives what the others get: a tuple has become a list."""
        self.check_is_rank()
        text = _encode(value)
        self._send(Task(SHARE, text))
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

    def raised(self) -> None:
        """The call has raised here; to be told before anybody is answered. Does not return where a rank has gone:
        what the handler raised only follows from that, and the daemon says which rank it was."""
        if not self._asked:
            return
        self._say_it_raised()
        with self._changed:
            seconds = min(self._patience, DEATH_SHOWS_SECONDS)
            self._changed.wait_for(lambda: self._is_broken or self._all_have_spoken(), seconds)
            while self._is_broken:  # the thread that has seen it ends this process
                self._changed.wait()

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
            self.leave(f"rank {peer.rank} sent a {type(message).__name__} out of turn")
        with self._changed:
            self._outcomes[peer.rank] = message
            late = message.failed and message.number <= self._ended_well
            self._changed.notify_all()
        if late:
            self._tell_it_went_well(peer)

    def lose(self, peer: Peer) -> None:
        """See Group.lose."""
        with self._changed:
            self._is_broken = not self.dismissed
            self._changed.notify_all()
        super().lose(peer)

    def _say_it_raised(self) -> None:
        if self._told_raised < self.calls:
            self._told_raised = self.calls
            self._send(Outcome(self.calls, True))

    def _settle(self) -> None:
        self._say_it_raised()
        end = _now() + self._patience
        for peer in self._peers:
            with self._changed:
                self._changed.wait_for(partial(self._has_spoken, peer), max(0.0, end - _now()))
                outcome = self._outcomes.get(peer.rank)
            if outcome is None or outcome.number != self.calls:
                self.leave(
                    f"the ranks are out of step: call {self.calls} of the handler raised on rank 0, and after "
                    f"{self._patience:g} s rank {peer.rank} has not said how it ended there"
                )
            # Where the leader alone is called, a follower only says that it is back from its tasks.
            if self.same_rows and not outcome.failed:
                self.leave(
                    f"the ranks are out of step: call {self.calls} of the handler raised on rank 0 "
                    f"and did not on rank {peer.rank}"
                )

    def _has_spoken(self, peer: Peer) -> bool:
        outcome = self._outcomes.get(peer.rank)
        return outcome is not None and outcome.number == self.calls

    def _all_have_spoken(self) -> bool:
        return all(map(self._has_spoken, self._peers))

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
            self.leave(f"cannot read from rank {peer.rank}: {type(error).__name__}: {error}")
        self.lose(peer)

    def _send(self, message: Message, peers: Sequence[Peer] = ()) -> None:
        # This waits while a follower is AHEAD messages behind and its socket is full. It ends when the follower goes
        # on, when it dies, or when the daemon's clock for the request that is being served kills the whole group: a
        # follower that is stuck for ever is the same to a client as a handler that is.
        with self._sending:
            for peer in peers or self._peers:
                try:
                    peer.send(message)
                except OSError:
                    self.lose(peer)

    def connections(self) -> Sequence[Peer]:
        """See Group.connections."""
        return self._peers
