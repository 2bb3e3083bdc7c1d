"""What a rank that is not the leader does between Loaded and its end: what the leader says, and no answer to anybody.

Its handler is called with the same rows as the leader's, in the same order; where the model steps, with the same live
requests at each step. What it returns, and the chunks it would send, go nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torchd_protos.frames import Batch, Failure, Item, Load, Message, Outcome, Settings, Step, Task, Unload
from torchd_workers.aftermath import recover
from torchd_workers.channel import Channel, RunningRequest
from torchd_workers.context import Context, RequestProcessor
from torchd_workers.device import ComputeThreads
from torchd_workers.failures import failure_of, user_traceback
from torchd_workers.follower import FollowerGroup
from torchd_workers.group import OutOfStep
from torchd_workers.handler import Handler
from torchd_workers.inputs import row_of


class FollowerLoop:
    """The handler of one loaded model and the leader it follows."""

    def __init__(
        self, channel: Channel, group: FollowerGroup, handler: Handler, load: Load, threads: ComputeThreads
    ) -> None:
        self._channel = channel
        self._group = group
        self._handler = handler
        self._load = load
        self._threads = threads
        # Where the model steps: the requests the leader is in the middle of, in its order.
        self._live: list[Item] = []

    def run(self) -> None:
        """Follows until the leader dismisses its group."""
        while not isinstance(message := self._group.receive(), Unload):
            self.take(message)

    def take(self, message: Message) -> None:
        """Does one thing that the leader or the daemon has said."""
        match message:
            case Batch(items=items) if self._load.loop == "step":
                self._live += items
            case Batch(items=items):
                self._call(items)
            case Step(ended=ended):
                gone = {one.request for one in ended}
                live = [item for item in self._live if item.request not in gone]
                # Parts are in the row of a request's first step only.
                self._live = [replace(item, call=replace(item.call, parts=())) for item in live]
                self._call(live)
            case Task() as task:
                self._run(task)
            case Outcome() as outcome:
                self._group.answer(outcome)
            case Settings(threads=count):
                self._threads.change(count)
            case _:
                self._channel.leave(f"the daemon sent a {type(message).__name__} out of turn")

    def _call(self, items: Sequence[Item]) -> None:
        """One call of the handler, at the same time as the leader's."""
        self._threads.apply()
        context = self._handler.context
        requests = [RunningRequest(item.request, item.remaining_ms) for item in items]
        processors = [RequestProcessor(None, item.call) for item in items]
        self._group.calls += 1
        failures: list[Failure] = []
        try:
            context.begin({at: item.call.request_id for at, item in enumerate(items)}, processors, requests)
            context.agree()
            self._handler([row_of(item.call, self._load.decode_input) for item in items])
        except BaseException as error:  # user code may raise anything; what it means depends on the leader
            self._group.fail(user_traceback(error, self._load.directory))
            failures.append(failure_of(error, 0, self._load.directory))
        for request in requests:
            request.finished = True
        recover(self._channel, failures)

    def _run(self, task: Task) -> None:
        self._threads.apply()
        try:
            self._group.run(task)
        except OutOfStep:
            return  # the leader's call has raised, which is what comes next
        except BaseException as error:  # the leader may be waiting for what this task was to give
            told = user_traceback(error, self._load.directory)
            self._channel.leave(f"the task {task.name!r} raised on rank {self._group.rank}\n{told}")


def no_chunk(context: Context, index: int, value: object) -> None:
    """Where the leader sends a chunk of an answer, a follower sends nothing."""
