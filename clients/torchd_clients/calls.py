"""The calls a client makes, without I/O: which method, what it is sent, how its answer is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from torchd_clients.errors import from_status
from torchd_protos.inference_pb2 import PredictionResponse, PredictionsRequest, TorchServeHealthResponse
from torchd_protos.management_pb2 import (
    DescribeModelRequest,
    ListDevicesRequest,
    ListDevicesResponse,
    ListModelsRequest,
    ManagementResponse,
    ModelChange,
    ModelDescription,
    RegisterModelRequest,
    ScaleWorkerRequest,
    SetDefaultRequest,
    UnregisterModelRequest,
)

Value = bytes | str
Data = Value | Mapping[str, Value]
Service = Literal["inference", "management", "health"]
Answer = TypeVar("Answer")

PART = "data"  # where TorchServe's handlers look first, and what its gRPC clients send
SERVING: int = HealthCheckResponse.SERVING


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One call: `read` turns a message of the answer into what the caller gets."""

    service: Service
    method: str
    request: Message
    read: Callable[[Any], Answer]
    # Starting and stopping workers takes longer than a prediction, and has a default timeout of its own.
    waits_for_workers: bool = False


def predict(model: str, data: Data, version: str | None) -> Call[bytes]:
    """One request, one answer."""
    return Call("inference", "Predictions", _prediction(model, data, version), _read_prediction)


def stream(model: str, data: Data, version: str | None) -> Call[bytes]:
    """One request, each chunk of its answer as a message."""
    return Call("inference", "StreamPredictions", _prediction(model, data, version), _read_prediction)


def ping() -> Call[str]:
    """Whether every model has the workers it should have."""
    return Call("inference", "Ping", Empty(), _read_health)


def watch(model: str | None, version: str | None) -> Call[int]:
    """The health of the daemon or of one model, now and whenever it changes."""
    name = "/".join(part for part in (model, version) if part)
    return Call("health", "Watch", HealthCheckRequest(service=name), _read_serving)


def register(
    url: str,
    model_name: str | None,
    initial_workers: int,
    batch_size: int | None,
    max_batch_delay: int | None,
    response_timeout: int | None,
    startup_timeout: int | None,
    handler: str | None,
    runtime: str | None,
    synchronous: bool,
) -> Call[ModelChange]:
    """A model archive of the daemon's store becomes a model."""
    request = RegisterModelRequest(
        url=url,
        model_name=model_name,
        initial_workers=initial_workers,
        batch_size=batch_size,
        max_batch_delay=max_batch_delay,
        response_timeout=response_timeout,
        startup_timeout=startup_timeout,
        handler=handler,
        runtime=runtime,
        synchronous=synchronous,
    )
    return Call("management", "RegisterModel", request, _read_change, waits_for_workers=True)


def scale(
    model: str,
    min_worker: int,
    max_worker: int | None,
    version: str | None,
    synchronous: bool,
    batch_size: int | None = None,
    max_batch_delay: int | None = None,
) -> Call[ModelChange]:
    """Another number of workers. A minimum of 0 is sent as 0: the field knows it from "not given"."""
    request = ScaleWorkerRequest(
        model_name=model,
        model_version=version,
        min_worker=min_worker,
        max_worker=max_worker,
        synchronous=synchronous,
        batch_size=batch_size,
        max_batch_delay=max_batch_delay,
    )
    return Call("management", "ScaleWorker", request, _read_change, waits_for_workers=True)


def describe(model: str, version: str | None) -> Call[list[ModelDescription]]:
    """One version of a model, or every one."""
    request = DescribeModelRequest(model_name=model, model_version=version)
    return Call("management", "DescribeModel", request, _read_descriptions)


def devices() -> Call[ListDevicesResponse]:
    """The devices of the daemon's machine, who holds which, and why there are no others."""
    return Call("management", "ListDevices", ListDevicesRequest(), _read_devices)


def list_page(token: int) -> Call[ManagementResponse]:
    """One page of the registered models."""
    return Call("management", "ListModels", ListModelsRequest(next_page_token=token), _read_page)


def set_default(model: str, version: str) -> Call[ModelChange]:
    """Another default version."""
    request = SetDefaultRequest(model_name=model, model_version=version)
    return Call("management", "SetDefault", request, _read_change)


def unregister(model: str, version: str | None) -> Call[ModelChange]:
    """One version of a model goes, after its requests."""
    request = UnregisterModelRequest(model_name=model, model_version=version)
    return Call("management", "UnregisterModel", request, _read_change, waits_for_workers=True)


def _prediction(model: str, data: Data, version: str | None) -> PredictionsRequest:
    parts = data if isinstance(data, Mapping) else {PART: data}
    return PredictionsRequest(
        model_name=model,
        model_version=version,
        input={name: value.encode() if isinstance(value, str) else value for name, value in parts.items()},
    )


def _read_prediction(response: PredictionResponse) -> bytes:
    if response.status.code:
        # Our messages live in a descriptor pool of their own: this makes it the Status everybody else knows.
        raise from_status(Status.FromString(response.status.SerializeToString()))
    return response.prediction


def _read_health(response: TorchServeHealthResponse) -> str:
    # TorchServe's contract has the word in a JSON document and nowhere else.
    return str(json.loads(response.health)["status"])


def _read_serving(response: HealthCheckResponse) -> int:
    return int(response.status)


def _read_change(response: ManagementResponse) -> ModelChange:
    return response.change


def _read_descriptions(response: ManagementResponse) -> list[ModelDescription]:
    return list(response.models)


def _read_devices(response: ListDevicesResponse) -> ListDevicesResponse:
    return response


def _read_page(response: ManagementResponse) -> ManagementResponse:
    return response
