"""A far side for the clients: both services and grpc.health.v1 on a real socket, with models that exist by name only.

What the model `echo` is sent comes back; `slow` answers when nobody waits any more; `endless` streams until cancelled.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from grpc_status import rpc_status

from torchd_protos import inference_pb2 as inference
from torchd_protos import inference_pb2_grpc, management_pb2_grpc
from torchd_protos import management_pb2 as management

PAGE = 2
# For channels: otherwise the back-off from a server that has gone leaks into the next test.
OPTIONS = [("grpc.use_local_subchannel_pool", 1)]
SECONDS = 20  # a guard, never waited for in a test that passes


@dataclass(frozen=True, slots=True)
class Received:
    """One call as the server saw it."""

    method: str
    request: Any
    metadata: dict[str, Any]
    remaining: float
    peer: str


def status(code: grpc.StatusCode, reason: str, message: str, retry_delay: float | None = None) -> Status:
    """google.rpc.Status as torchd sends it."""
    details: list[Message] = [ErrorInfo(reason=reason, domain="torchd", metadata={"model": "bert"})]
    if retry_delay is not None:
        details.append(RetryInfo(retry_delay=Duration(nanos=int(retry_delay * 1e9))))
    packed = [AnyMessage() for _ in details]
    for into, detail in zip(packed, details, strict=True):
        into.Pack(detail)
    return Status(code=code.value[0], message=message, details=packed)


class FakeServer(
    inference_pb2_grpc.InferenceAPIsServiceServicer, management_pb2_grpc.ManagementAPIsServiceServicer, HealthServicer
):
    """Serves everything on one port until `stop`."""

    def __init__(self, port: int = 0) -> None:
        HealthServicer.__init__(self)
        self.received: list[Received] = []
        self.failure: Status | None = None
        self.status_in_answer: Status | None = None
        self.models = {"bert": [management.ModelDescription(model_name="bert", model_version="1.0", is_default=True)]}
        self.devices = management.ListDevicesResponse()
        self.health = "Healthy"
        self.left = threading.Event()  # a client of `slow` or `endless` has gone
        self.watched = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        inference_pb2_grpc.add_InferenceAPIsServiceServicer_to_server(self, self._server)
        management_pb2_grpc.add_ManagementAPIsServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait(SECONDS)

    def Ping(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._receive("Ping", request, context)
        return inference.TorchServeHealthResponse(health=f'{{\n  "status": "{self.health}"\n}}')

    def Predictions(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._receive("Predictions", request, context)
        if request.model_name == "slow":
            context.add_callback(self.left.set)
            self.left.wait(SECONDS)
        echo = b"&".join(name.encode() + b"=" + value for name, value in sorted(request.input.items()))
        answer = inference.PredictionResponse(prediction=echo)
        if self.status_in_answer:
            answer.status.MergeFromString(self.status_in_answer.SerializeToString())
        return answer

    def StreamPredictions(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._receive("StreamPredictions", request, context)
        if request.model_name == "endless":
            context.add_callback(self.left.set)
        yield inference.PredictionResponse(prediction=b"first")
        if request.model_name == "endless":
            self.left.wait(SECONDS)
        if request.model_name == "breaks":
            self._abort(context, status(grpc.StatusCode.UNKNOWN, "HANDLER_ERROR", "Prediction failed"))
        yield inference.PredictionResponse(prediction=b"second")

    def RegisterModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._receive("RegisterModel", request, context)
        return self._change(request.model_name or "bert", "1.0", request.initial_workers, request.synchronous)

    def ScaleWorker(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._receive("ScaleWorker", request, context)
        return self._change(request.model_name, request.model_version or "1.0", request.min_worker, request.synchronous)

    def SetDefault(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._receive("SetDefault", request, context)
        return self._change(request.model_name, request.model_version, 1)

    def UnregisterModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._receive("UnregisterModel", request, context)
        return self._change(request.model_name, request.model_version or "1.0", 0)

    def DescribeModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._receive("DescribeModel", request, context)
        if not self.models[request.model_name]:
            self._abort(context, status(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "Model not found"))
        return management.ManagementResponse(models=self.models[request.model_name])

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._receive("ListModels", request, context)
        start, names = request.next_page_token, sorted(self.models)
        page = [management.ModelSummary(model_name=name) for name in names[start : start + PAGE]]
        following = start + PAGE if start + PAGE < len(names) else None
        return management.ManagementResponse(summaries=page, next_page_token=following)

    def ListDevices(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._receive("ListDevices", request, context)
        return self.devices

    def Watch(self, request: Any, context: grpc.ServicerContext, *rest: Any) -> Any:
        self.watched.set()
        return super().Watch(request, context, *rest)

    def _change(self, model: str, version: str, workers: int, done: bool = True) -> Any:
        change = management.ModelChange(
            model_name=model, model_version=version, ready_workers=workers, wanted_workers=workers, done=done
        )
        return management.ManagementResponse(msg="a sentence nobody parses", change=change)

    def _receive(self, method: str, request: Message, context: grpc.ServicerContext) -> None:
        metadata = dict(context.invocation_metadata())
        self.received.append(Received(method, request, metadata, context.time_remaining(), context.peer()))
        if self.failure:
            self._abort(context, self.failure)

    def _abort(self, context: grpc.ServicerContext, failure: Status) -> None:
        context.abort_with_status(rpc_status.to_status(failure))
