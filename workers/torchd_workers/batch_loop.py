"""Runs one batch through the handler: exactly one last answer for each request, whatever the handler does."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from torchd_protos.frames import Batch, Call, Failure, Load, Message, Replies, Reply
from torchd_workers.aftermath import ends_process, recover
from torchd_workers.answers import Answer, Answers
from torchd_workers.channel import Channel, RunningRequest
from torchd_workers.context import RequestProcessor
from torchd_workers.handler import Handler
from torchd_workers.inputs import row_of
from torchd_workers.outputs import checked_list

if TYPE_CHECKING:
    from torchd_workers.leader import LeaderGroup

# Bodies of one batch that share a frame: the daemon's limit of a frame is that of one answer and as much as this.
TOGETHER_BYTES = 1024 * 1024


class BatchLoop:
    """The handler of one loaded model and the channel its answers leave by."""

    # It runs a batch when it takes it, so it has never work left.
    is_busy = False

    def __init__(self, channel: Channel, handler: Handler, load: Load, group: LeaderGroup | None = None) -> None:
        self._channel = channel
        self._handler = handler
        self._load = load
        self._group = group
        self._answers = Answers(load)

    def take(self, batch: Batch) -> None:
        """Calls the handler with the batch and sends its answers in one piece."""
        running = self._channel.requests(batch)
        calls = [item.call for item in batch.items]
        if self._group is None and any(request.cancelled for request in running):
            running, calls = self._still_wanted(running, calls)
            if not running:
                self._channel.send(Replies((), (), 0, True))
                return
        processors = [RequestProcessor(None, call) for call in calls]
        ids = {index: call.request_id for index, call in enumerate(calls)}
        self._handler.context.begin(ids, processors, running)
        self._channel.begin(batch.step)
        if self._group is not None:
            self._group.begin(batch, self._handler.context)
        started = perf_counter()
        raised = True
        answers: Sequence[Answer]
        try:
            rows = [row_of(call, self._load.decode_input) for call in calls]
            output = self._handler(rows)
            raised = False
            values = checked_list(output, len(running))
            answers = list(map(self._answers.of_value, running, values, processors))
        except BaseException as error:  # user code may raise anything; its clients get an answer all the same
            if raised and self._group is not None:
                self._group.raised()
            answers = self._answers.of_errors(running, error)
        self._channel.finish(running)
        handler_us = int((perf_counter() - started) * 1e6)
        # Without the end of the step the daemon sends no other batch to a process that is about to leave.
        messages = _together(answers, handler_us, end_of_step=not ends_process(answers))
        if len(messages) == 1 and self._group is None:  # in a group nobody would see to what is held back
            self._channel.send_soon(*messages)
        else:
            self._channel.send(*messages)
            recover(self._channel, answers)
        if self._group is not None:
            self._group.end(raised)

    def _still_wanted(
        self, running: list[RunningRequest], calls: list[Call]
    ) -> tuple[list[RunningRequest], list[Call]]:
        """Those of a batch that has not begun whose clients are still there; the others are answered, and not run."""
        gone = [request for request in running if request.cancelled]
        self._channel.finish(gone)
        self._channel.send(*[Failure(request.number, "Cancelled", "the client is gone") for request in gone])
        left = [(request, call) for request, call in zip(running, calls, strict=True) if request not in gone]
        return [request for request, _ in left], [call for _, call in left]

    def step(self) -> None:
        """Nothing is ever left to do."""


def _together(answers: Sequence[Answer], handler_us: int, end_of_step: bool) -> list[Message]:
    """The answers, those that are bodies only in one frame, as far as it has room; it ends the batch."""
    bodies: list[Reply] = []
    others: list[Message] = []
    room = TOGETHER_BYTES
    for answer in answers:
        if isinstance(answer, Failure) or answer.status or answer.reason or answer.headers or len(answer.body) > room:
            others.append(answer)
        else:
            bodies.append(answer)
            room -= len(answer.body)
    ending = Replies([reply.request for reply in bodies], [reply.body for reply in bodies], handler_us, end_of_step)
    return [*others, ending]
