"""Continuous batching: the handler is called again and again with every live request, and says which of them end.

A request's parts are in the row of its first step only, as TorchServe has it; its id and headers stay. After each step
`context.stopping_criteria[i](value)` is asked: False sends the value as a chunk and keeps the request, True or None
ends it. Requests join between two steps and leave between two steps: no client waits for another's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from torchd_protos.frames import Batch, Call, Cancel, Load, Reply, Step
from torchd_workers.aftermath import recover
from torchd_workers.answers import Answer, Answers, raise_if_over
from torchd_workers.channel import Channel, RunningRequest
from torchd_workers.context import RequestProcessor
from torchd_workers.failures import Cancelled
from torchd_workers.handler import Handler
from torchd_workers.inputs import row_of
from torchd_workers.outputs import checked_list

if TYPE_CHECKING:
    from torchd_workers.leader import LeaderGroup

# TorchServe's header by which a client sees whether more follows.
STREAM_NEXT = "ts_stream_next"


class _Live:
    """One request between its first step and its last."""

    __slots__ = ("call", "request")

    def __init__(self, request: RunningRequest, call: Call) -> None:
        self.request = request
        self.call = call


class StepLoop:
    """The handler of one loaded model and the requests it is in the middle of."""

    def __init__(self, channel: Channel, handler: Handler, load: Load, group: LeaderGroup | None = None) -> None:
        self._channel = channel
        self._handler = handler
        self._context = handler.context
        self._load = load
        self._group = group
        self._answers = Answers(load)
        self._live: list[_Live] = []
        # The last batch whose requests are among them.
        self._joined = 0
        # Requests that have ended since the ranks of a group were last told so.
        self._ended: list[Cancel] = []

    @property
    def is_busy(self) -> bool:
        """Whether another step is to be made."""
        return bool(self._live)

    def take(self, batch: Batch) -> None:
        """These join the next step."""
        requests = self._channel.requests(batch)
        self._live += [_Live(request, item.call) for request, item in zip(requests, batch.items, strict=True)]
        self._joined = batch.step
        if self._group is not None:
            self._group.pass_on(batch)

    def step(self) -> None:
        """One call of the handler with everybody who still waits."""
        self._drop_over()
        self._channel.begin(self._joined)
        if not self._live:
            return
        live = self._live
        requests = [one.request for one in live]
        processors = [RequestProcessor(None, one.call) for one in live]
        ids = {index: one.call.request_id for index, one in enumerate(live)}
        self._context.begin(ids, processors, requests)
        if self._group is not None:
            self._group.begin(Step(tuple(self._ended)), self._context)
            self._ended.clear()
        started = perf_counter()
        raised = True
        failures: list[Answer] = []
        try:
            rows = [row_of(one.call, self._load.decode_input) for one in live]
            for one in live:
                one.call = replace(one.call, parts=())
            output = self._handler(rows)
            raised = False
            values = checked_list(output, len(live))
        except BaseException as error:  # user code may raise anything; its clients get an answer all the same
            if raised and self._group is not None:
                self._group.raised()
            self._live = []
            failures = self._answers.of_errors(requests, error)
            for request, answer in zip(requests, failures, strict=True):
                self._end(request, answer)
        else:
            self._live = [
                one
                for index, one in enumerate(live)
                if self._goes_on(index, one.request, values[index], processors[index])
            ]
        self._channel.send(self._answers.prediction_time(perf_counter() - started, ids))
        recover(self._channel, failures)
        if self._group is not None:
            self._group.end(raised)

    def _drop_over(self) -> None:
        for one in self._live:
            if one.request.over:
                error = one.request.failure or Cancelled("the client is gone")
                self._end(one.request, self._answers.of_error(one.request, error))
        self._live = [one for one in self._live if not one.request.over]

    def _goes_on(self, index: int, request: RunningRequest, value: Any, processor: RequestProcessor) -> bool:
        """Sends one value of a step; whether its request lives on."""
        try:
            raise_if_over(request)
            more = self._has_more(index, value)
            answer = self._answers.of_value(request, value, processor, more)
        except BaseException as error:  # stopping criteria are user code too
            answer = self._answers.of_error(request, error)
        if isinstance(answer, Reply) and answer.more:
            self._channel.offer_chunk(request, answer)
            return True
        self._end(request, answer)
        return False

    def _end(self, request: RunningRequest, answer: Answer) -> None:
        self._channel.end(request, answer)
        if self._group is not None:
            self._ended.append(Cancel(request.number))

    def _has_more(self, index: int, value: Any) -> bool:
        criteria: Sequence[Any] | None = self._context.stopping_criteria
        ends = criteria[index](value) if criteria else None
        if ends is None:
            return False
        self._context.set_response_header(index, STREAM_NEXT, "false" if ends else "true")
        return not ends
