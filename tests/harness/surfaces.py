"""One client for each surface, with the same methods, so that a test can say what it means once for both (P25)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from importlib import import_module
from struct import pack
from types import TracebackType
from typing import Any, Protocol, Self, cast
from urllib.parse import quote, urlencode

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from harness.daemon import Daemon

PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Error:
    """What a surface said instead of an answer. `code` is gRPC's name of it, or the HTTP status."""

    code: str | int
    message: str
    reason: str = ""
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of one request: a body, or an error."""

    body: bytes = b""
    error: Error | None = None
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200

    def json(self) -> Any:
        """The body as JSON; fails with the error if there is one."""
        assert self.error is None, self.error
        return json.loads(self.body)

    @property
    def sentence(self) -> str:
        """What a management call says: the sentence of REST's document, or gRPC's msg as it is."""
        assert self.error is None, self.error
        text = self.body.decode()
        return str(json.loads(text)["status"]) if text.lstrip().startswith('{\n  "status"') else text


class Surface(Protocol):
    """What both clients can do. Every call opens what it needs and closes it, unless it says otherwise."""

    name: str

    def predict(self, model: str, body: bytes, *, version: str = "", timeout: float | None = None) -> Answer:
        """One request, one answer."""

    def stream(self, model: str, body: bytes) -> Iterator[bytes]:
        """One request; its chunks as they come. Raises StreamBroken where it ends with an error."""

    def abandon(self, model: str, body: bytes) -> Abandoned:
        """Sends a request that the caller will give up."""

    def register(self, url: str, **settings: Any) -> Answer:
        """RegisterModel; synchronous unless told otherwise."""

    def scale(self, model: str, workers: int, *, version: str = "", synchronous: bool = True) -> Answer:
        """ScaleWorker to exactly so many."""

    def describe(self, model: str, version: str = "") -> Answer:
        """DescribeModel."""

    def models(self, limit: int = 100, token: int = 0) -> Answer:
        """ListModels."""

    def set_default(self, model: str, version: str) -> Answer:
        """SetDefault."""

    def unregister(self, model: str, version: str = "") -> Answer:
        """UnregisterModel."""

    def ping(self) -> str:
        """Ping: "Healthy" or "Unhealthy"."""

    def close(self) -> None:
        """Closes what is open."""


class Abandoned(Protocol):
    """A request on its way whose client can leave."""

    def leave(self) -> None:
        """Cancels it, or resets its connection."""


class StreamBroken(Exception):
    """A stream ended with an error."""

    def __init__(self, error: Error) -> None:
        super().__init__(error)
        self.error = error


class _Closing:
    def close(self) -> None:
        """Closes what is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class GrpcSurface(_Closing):
    """The stubs that the test session generated from protos/*.proto, on channels of this client's own."""

    name = "grpc"

    def __init__(self, daemon: Daemon) -> None:
        self.messages = import_module("inference_pb2")
        self.management_messages = import_module("management_pb2")
        self._channels = [open_channel(daemon, name) for name in ("grpc_inference", "grpc_management")]
        self.inference = import_module("inference_pb2_grpc").InferenceAPIsServiceStub(self._channels[0])
        self.management = import_module("management_pb2_grpc").ManagementAPIsServiceStub(self._channels[1])

    def close(self) -> None:
        """Closes both channels."""
        for channel in self._channels:
            channel.close()

    def predict(self, model: str, body: bytes, *, version: str = "", timeout: float | None = None) -> Answer:
        """Predictions with the body as part "data"."""
        request = self.messages.PredictionsRequest(model_name=model, model_version=version, input={"data": body})
        try:
            # Without a deadline the server's own holds; the guard only keeps a broken server from hanging the test.
            reply = self.inference.Predictions.future(request, timeout=timeout).result(PATIENCE)
        except grpc.RpcError as error:
            return Answer(error=error_of(error))
        return Answer(reply.prediction)

    def stream(self, model: str, body: bytes) -> Iterator[bytes]:
        """StreamPredictions."""
        request = self.messages.PredictionsRequest(model_name=model, input={"data": body})
        try:
            for reply in self.inference.StreamPredictions(request, timeout=PATIENCE):
                yield reply.prediction
        except grpc.RpcError as error:
            raise StreamBroken(error_of(error)) from error

    def abandon(self, model: str, body: bytes) -> Abandoned:
        """A call that will be cancelled."""
        request = self.messages.PredictionsRequest(model_name=model, input={"data": body})
        return _Cancelled(self.inference.Predictions.future(request, timeout=PATIENCE))

    def register(self, url: str, **settings: Any) -> Answer:
        """RegisterModel."""
        return self._manage("RegisterModel", url=url, **{"synchronous": True, **settings})

    def scale(self, model: str, workers: int, *, version: str = "", synchronous: bool = True) -> Answer:
        """ScaleWorker."""
        return self._manage(
            "ScaleWorker",
            model_name=model,
            model_version=version,
            min_worker=workers,
            max_worker=workers,
            synchronous=synchronous,
        )

    def describe(self, model: str, version: str = "") -> Answer:
        """DescribeModel."""
        return self._manage("DescribeModel", model_name=model, model_version=version)

    def models(self, limit: int = 100, token: int = 0) -> Answer:
        """ListModels."""
        return self._manage("ListModels", limit=limit, next_page_token=token)

    def set_default(self, model: str, version: str) -> Answer:
        """SetDefault."""
        return self._manage("SetDefault", model_name=model, model_version=version)

    def unregister(self, model: str, version: str = "") -> Answer:
        """UnregisterModel."""
        return self._manage("UnregisterModel", model_name=model, model_version=version)

    def ping(self) -> str:
        """Ping's JSON document."""
        empty = import_module("google.protobuf.empty_pb2").Empty()
        return str(json.loads(self.inference.Ping(empty, timeout=PATIENCE).health)["status"])

    def _manage(self, method: str, **fields: Any) -> Answer:
        request_class = getattr(self.management_messages, f"{method}Request")
        try:
            reply = getattr(self.management, method)(request_class(**fields), timeout=PATIENCE)
        except grpc.RpcError as error:
            return Answer(error=error_of(error))
        return Answer(reply.msg.encode())


class RestSurface(_Closing):
    """http.client, a connection for each request."""

    name = "rest"

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def predict(self, model: str, body: bytes, *, version: str = "", timeout: float | None = None) -> Answer:
        """POST /predictions with the raw body."""
        path = f"/predictions/{quote(model)}" + (f"/{quote(version)}" if version else "")
        headers = {"Content-Type": "application/json"}
        return self.request("POST", path, body, headers | ({"Request-Timeout": f"{timeout:.3f}"} if timeout else {}))

    def stream(self, model: str, body: bytes) -> Iterator[bytes]:
        """POST /predictions; the pieces in which the chunked body arrives."""
        connection = self.connect("inference")
        try:
            connection.request("POST", f"/predictions/{quote(model)}", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise StreamBroken(rest_error(response.status, response.read(), dict(response.getheaders())))
            while chunk := response.read1(1 << 20):
                yield chunk
        except (HTTPException, ConnectionError) as error:
            raise StreamBroken(Error(0, repr(error))) from error
        finally:
            connection.close()

    def abandon(self, model: str, body: bytes) -> Abandoned:
        """A request whose connection will be reset."""
        connection = self.connect("inference")
        connection.request("POST", f"/predictions/{quote(model)}", body, {"Content-Type": "application/json"})
        return _Reset(connection)

    def register(self, url: str, **settings: Any) -> Answer:
        """POST /models."""
        return self._manage("POST", "/models", url=url, **{"synchronous": True, **settings})

    def scale(self, model: str, workers: int, *, version: str = "", synchronous: bool = True) -> Answer:
        """PUT /models/{model}."""
        path = self._path(model, version)
        return self._manage("PUT", path, min_worker=workers, max_worker=workers, synchronous=synchronous)

    def describe(self, model: str, version: str = "") -> Answer:
        """GET /models/{model}."""
        return self._manage("GET", self._path(model, version))

    def models(self, limit: int = 100, token: int = 0) -> Answer:
        """GET /models."""
        return self._manage("GET", "/models", limit=limit, next_page_token=token)

    def set_default(self, model: str, version: str) -> Answer:
        """PUT /models/{model}/{version}/set-default."""
        return self._manage("PUT", f"{self._path(model, version)}/set-default")

    def unregister(self, model: str, version: str = "") -> Answer:
        """DELETE /models/{model}."""
        return self._manage("DELETE", self._path(model, version))

    def ping(self) -> str:
        """GET /ping."""
        return str(json.loads(self.request("GET", "/ping").body)["status"])

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, port: str = ""
    ) -> Answer:
        """One request on a connection of its own; a status from 400 up is an error."""
        connection = self.connect(port or "inference")
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            content, found = response.read(), {name.lower(): value for name, value in response.getheaders()}
        finally:
            connection.close()
        error = rest_error(response.status, content, found) if response.status >= 400 else None
        return Answer(content, error, found, response.status)

    def connect(self, port: str) -> HTTPConnection:
        """A connection to one of the daemon's REST ports."""
        return HTTPConnection(*self._daemon.host_and_port(port), timeout=PATIENCE)

    def _manage(self, method: str, path: str, **parameters: Any) -> Answer:
        query = urlencode(
            {
                name: str(value).lower() if value in (True, False) and isinstance(value, bool) else value
                for name, value in parameters.items()
            }
        )
        return self.request(method, f"{path}?{query}" if query else path, port="management")

    @staticmethod
    def _path(model: str, version: str) -> str:
        return f"/models/{quote(model)}" + (f"/{quote(version)}" if version else "")


SURFACES: dict[str, type[GrpcSurface] | type[RestSurface]] = {"grpc": GrpcSurface, "rest": RestSurface}


def open_channel(daemon: Daemon, name: str) -> grpc.Channel:
    """A channel that shares nothing with other channels: a dead server's back-off must not reach the next test."""
    host, port = daemon.host_and_port(name)
    return grpc.insecure_channel(f"{host}:{port}", options=[("grpc.use_local_subchannel_pool", 1)])


def error_of(error: grpc.RpcError) -> Error:
    """A gRPC error with the details of its google.rpc.Status."""
    reason, retry_after = "", None
    status = rpc_status.from_call(cast(grpc.Call, error))
    for detail in status.details if status is not None else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            assert info.domain == "torchd", info
            reason = info.reason
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return Error(error.code().name, error.details() or "", reason, retry_after)


def rest_error(status: int, content: bytes, headers: dict[str, str]) -> Error:
    """REST's error document, which every status from 400 up must have."""
    document = json.loads(content)
    assert document["code"] == status, document
    assert document["type"], document
    found = {name.lower(): value for name, value in headers.items()}
    retry_after = float(found["retry-after"]) if "retry-after" in found else None
    return Error(status, document["message"], found.get("x-torchd-reason", ""), retry_after)


class _Cancelled:
    def __init__(self, call: Any) -> None:
        self._call = call

    def leave(self) -> None:
        """call.cancel()."""
        self._call.cancel()


class _Reset:
    def __init__(self, connection: HTTPConnection) -> None:
        self._connection = connection

    def leave(self) -> None:
        """Closes with a reset instead of a FIN: the rudest way to go (K03)."""
        assert self._connection.sock is not None
        self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
        self._connection.close()


class Crowd(_Closing):
    """Many callers at once: `call` starts one and returns its Future."""

    def __init__(self, size: int = 16) -> None:
        self._pool = ThreadPoolExecutor(size)

    def call(self, function: Any, *arguments: Any, **named: Any) -> Future[Any]:
        """Runs a call on a thread of its own."""
        return self._pool.submit(function, *arguments, **named)

    def close(self) -> None:
        """Waits for every caller."""
        self._pool.shutdown(wait=True)
