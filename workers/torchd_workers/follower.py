"""A follower's end of a group of ranks: it hears what the leader says among what the daemon says, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from json import JSONDecoder
from threading import Semaphore, Thread
from time import monotonic
from typing import Any, NoReturn, Protocol

from torchd_protos.frames import Batch, Message, Outcome, Settings, Step, Task, Unload
from torchd_workers.group import PATIENCE_SECONDS, SHARE, Group, Leave, OutOfStep
from torchd_workers.peers import Peer

# Messages that are taken off the leader's socket before what they say is done.
AHEAD = 64

_decode = JSONDecoder().decode
_now = monotonic


class Inbox(Protocol):
    """Where a follower's main thread finds what daemon and leader say (channel.Channel)."""

    def put(self, message: Message) -> None: ...
    def receive(self) -> Message: ...
    def receive_within(self, seconds: float) -> Message | None: ...


class FollowerGroup(Group):
    """A rank that is not the leader."""

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
        # The leader's Unload, when it has said it: what it said before is still done.
        self._last: Message | None = None

    def start(self) -> None:
        """Starts listening to the leader."""
        Thread(target=self._listen, name="torchd-leader", daemon=True).start()

    def receive(self) -> Message:
        """Waits for the next thing to do: Batch, Step, Task, Outcome, Settings; Unload once the leader leaves."""
        while True:
            message = self._deferred.popleft() if self._deferred else self._taken(self._inbox.receive())
            # The daemon says Unload to every rank. The leader may have requests left, for which it needs this one.
            if not isinstance(message, Unload) or message is self._last:
                return message

    def share(self, value: Any) -> Any:
        """See Group.share."""
        self.check_is_rank()
        message = self._next(None)
        if not (isinstance(message, Task) and message.name == SHARE):
            self._cannot_agree(message)
        return _decode(message.arguments_json)

    def _cannot_agree(self, message: Message | None) -> NoReturn:
        if isinstance(message, Unload) or (isinstance(message, Outcome) and message.failed):
            self._deferred.appendleft(message)
            raise OutOfStep("the leader has ended this call of the handler, which is still at work on this rank")
        told = f"the task {message.name!r}" if isinstance(message, Task) else f"a {type(message).__name__}"
        self.leave(
            f"the ranks are out of step: rank {self.rank} waited to agree with the leader, which went on with {told}"
        )

    def run(self, task: Task) -> None:
        """Does what the leader called; raises what that raises."""
        if task.name == SHARE:
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
        self.leave(
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
                case Unload() as unload if unload is not self._last:
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
                    self.dismissed, self._last = True, message
                elif isinstance(message, Batch | Step | Task | Outcome):
                    self._room.acquire()
                else:
                    self.leave(f"the leader sent a {type(message).__name__} out of turn")
                self._inbox.put(message)
        except Exception as error:
            self.leave(f"cannot read from the leader: {type(error).__name__}: {error}")
        self.lose(self._leader)

    def _send(self, message: Message) -> None:
        try:
            self._leader.send(message)
        except OSError:
            self.lose(self._leader)

    def connections(self) -> Sequence[Peer]:
        """See Group.connections."""
        return [self._leader]
