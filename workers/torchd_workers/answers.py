"""The last word on one request: its Reply, or the Failure that stands for what the handler did instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchd_protos.frames import Failure, Header, Load, Metric, Reply
from torchd_workers.channel import RunningRequest
from torchd_workers.context import RequestProcessor
from torchd_workers.failures import Cancelled, failure_of
from torchd_workers.outputs import reply_of

Answer = Reply | Failure


class Answers:
    """Answers of one loaded model, whichever way its handler is called."""

    def __init__(self, load: Load) -> None:
        self._load = load

    def of_value(self, request: RunningRequest, value: Any, processor: RequestProcessor, more: bool = False) -> Answer:
        """What the handler returned for one request, as its answer or, with `more`, as a chunk of it."""
        try:
            if request.over:
                raise_if_over(request)
            return reply_of(request.number, value, processor, self._load.max_response_bytes, more)
        except BaseException as error:  # what user code returned may raise anything
            return self.of_error(request, error)

    def of_error(self, request: RunningRequest, error: BaseException) -> Failure:
        """What the handler raised, for one request."""
        return failure_of(request.failure or error, request.number, self._load.directory)

    def of_errors(self, requests: Sequence[RunningRequest], error: BaseException) -> list[Answer]:
        """One Failure for each request; the traceback goes with the first only, it is for the log."""
        first, *rest = requests
        answers: list[Answer] = [self.of_error(first, error)]
        for request in rest:
            told = self.of_error(request, error)
            answers.append(Failure(told.request, told.kind, told.message, status=told.status))
        return answers

    def prediction_time(self, seconds: float, ids: Mapping[int, str]) -> Metric:
        """How long the handler took."""
        labels = [Header("ModelName", self._load.model), Header("Level", "Model")]
        return Metric(
            "PredictionTime", round(seconds * 1000, 2), "Milliseconds", "gauge", labels, ",".join(ids.values())
        )


def raise_if_over(request: RunningRequest) -> None:
    """Raises why nobody takes another answer to this request, if nobody does."""
    if request.failure is not None:
        raise request.failure
    if request.cancelled:
        raise Cancelled("the client is gone")
