"""Runs one batch through the handler: exactly one last answer for each request, whatever the handler does."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from torchd_protos.frames import Batch, Failure, Header, Load, Message, Metric, Reply, Started
from torchd_workers.channel import Channel, RunningRequest
from torchd_workers.context import Context, RequestProcessor
from torchd_workers.failures import Cancelled, failure_of
from torchd_workers.handler import Handler
from torchd_workers.inputs import headers_of, row_of
from torchd_workers.outputs import checked_list, reply_of

Answer = Reply | Failure


class BatchLoop:
    """The handler of one loaded model and the channel its answers leave by."""

    def __init__(self, channel: Channel, handler: Handler, load: Load) -> None:
        self._channel = channel
        self._handler = handler
        self._context: Context = handler.context
        self._load = load

    def run(self, batch: Batch) -> None:
        """Calls the handler with the batch and sends its answers in one piece."""
        running = self._channel.requests(batch)
        calls = [item.call for item in batch.items]
        processors = [RequestProcessor(headers_of(call)) for call in calls]
        ids = {index: call.request_id for index, call in enumerate(calls)}
        self._context.begin(ids, processors, running)
        self._channel.send(Started(batch.step))
        started = perf_counter()
        try:
            rows = [row_of(call, self._load.decode_input) for call in calls]
            values = checked_list(self._handler(rows), len(running))
            answers = [self._answer(index, value) for index, value in enumerate(values)]
        except BaseException as error:  # user code may raise anything; its clients get an answer all the same
            answers = self._failures(error)
        self._channel.finish(running)
        milliseconds = (perf_counter() - started) * 1000
        self._channel.send(*_with_end_of_step(answers), self._prediction_time(milliseconds, ids))

    def _answer(self, index: int, value: Any) -> Answer:
        request = self._context.running[index]
        try:
            _raise_if_over(request)
            return reply_of(
                request.number, value, self._context.request_processor[index], self._load.max_response_bytes
            )
        except BaseException as error:
            return failure_of(error, request.number, self._load.directory)

    def _failures(self, error: BaseException) -> list[Answer]:
        """One Failure for each request; the traceback goes with the first only, it is for the log."""
        first, *rest = self._context.running
        answers: list[Answer] = [self._failure(first, error)]
        for request in rest:
            told = self._failure(request, error)
            answers.append(Failure(told.request, told.kind, told.message, status=told.status))
        return answers

    def _failure(self, request: RunningRequest, error: BaseException) -> Failure:
        return failure_of(request.failure or error, request.number, self._load.directory)

    def _prediction_time(self, milliseconds: float, ids: dict[int, str]) -> Metric:
        labels = [Header("ModelName", self._load.model), Header("Level", "Model")]
        value = round(milliseconds, 2)
        return Metric("PredictionTime", value, "Milliseconds", "gauge", labels, ",".join(ids.values()))


def _raise_if_over(request: RunningRequest) -> None:
    if request.failure is not None:
        raise request.failure
    if request.cancelled:
        raise Cancelled("the client is gone")


def _with_end_of_step(answers: list[Answer]) -> list[Message]:
    *before, last = answers
    if isinstance(last, Reply):
        ending: Message = Reply(last.request, last.status, last.reason, last.headers, False, True, last.body)
    else:
        ending = Failure(last.request, last.kind, last.message, last.traceback, True, last.status)
    return [*before, ending]
