"""What a client of either kind is made of: its channels, one per address, and what every call on them carries."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from torchd_clients.calls import Call, Service
from torchd_clients.credentials import Tls, Token
from torchd_clients.errors import DeadlineExceeded, TorchdError, Unavailable, from_rpc_error
from torchd_clients.run_directory import find_daemon
from torchd_protos.inference_pb2_grpc import InferenceAPIsServiceStub
from torchd_protos.management_pb2_grpc import ManagementAPIsServiceStub

DEFAULT_INFERENCE = "127.0.0.1:7070"
DEFAULT_MANAGEMENT = "127.0.0.1:7071"
MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # the daemon's own default; gRPC's is 4 MiB
_LOOPBACK = ("127.", "localhost:", "[::1]:", "unix:")

Metadata = Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]]

_STUBS: dict[Service, Callable[[Any], Any]] = {
    "inference": InferenceAPIsServiceStub,
    "management": ManagementAPIsServiceStub,
    "health": HealthStub,
}


class Connection:
    """Shared by the blocking and the asyncio client, which differ in how they open a channel and wait for an answer.

    Args:
        inference: Address of the inference service, "host:port".
        management: Address of the management service.
        timeout: Seconds a call may take that names no timeout itself.
        worker_timeout: The same for calls that wait for workers to start or stop: register, scale, unregister.
        metadata: Sent with every call, e.g. {"x-tenant": "a"}.
        token: Shown with every call: one token, or a function from the service to its token such as `KeyFile(path)`.
        tls: How to speak TLS; None speaks plain text.
        max_message_bytes: Largest message sent or accepted.
        channel_options: Further gRPC channel arguments; they win over ours.
    """

    _open_channel: Callable[..., Any]
    _open_secure_channel: Callable[..., Any]

    def __init__(
        self,
        inference: str = DEFAULT_INFERENCE,
        management: str = DEFAULT_MANAGEMENT,
        *,
        timeout: float = 60.0,
        worker_timeout: float = 300.0,
        metadata: Metadata = (),
        token: Token | None = None,
        tls: Tls | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        channel_options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self._addresses: dict[Service, str] = {"inference": inference, "management": management, "health": inference}
        self._timeout = timeout
        self._worker_timeout = worker_timeout
        self._metadata = _pairs(metadata)
        self._token = token
        self._tls = tls
        self._max_message_bytes = max_message_bytes
        self._channel_options = channel_options
        self._channels: dict[str, Any] = {}
        self._stubs: dict[Service, Any] = {}
        self._opening = threading.Lock()  # threads may share a blocking client

    @classmethod
    def local(cls, environ: Mapping[str, str], **settings: Any) -> Self:
        """A client of the one daemon that this user runs, with its addresses, tokens and certificate; `environ` is
        os.environ. Raises Unavailable if there is none, or more than one."""
        daemon = find_daemon(environ)
        if daemon is None:
            raise Unavailable("this user runs no daemon, or more than one; name the addresses of the one you mean")
        found = {"token": daemon.token, "tls": daemon.tls} | settings
        return cls(daemon.grpc_inference, daemon.grpc_management, **found)

    def _start(
        self, call: Call[Any], timeout: float | None, metadata: Metadata | None = None, *, wait_for_daemon: bool = False
    ) -> Any:
        return getattr(self._stub(call.service), call.method)(
            call.request,
            timeout=self._seconds(call, timeout),
            metadata=self._metadata + self._shown(call.service) + _pairs(metadata or ()),
            wait_for_ready=wait_for_daemon,
        )

    def _stub(self, service: Service) -> Any:
        # Opened at the first call and not before: an asyncio channel belongs to the loop that runs then.
        with self._opening:
            if service not in self._stubs:
                address = self._addresses[service]
                if address not in self._channels:
                    options = [*_options(address, self._max_message_bytes), *self._channel_options]
                    self._channels[address] = self._open(address, options)
                self._stubs[service] = _STUBS[service](self._channels[address])
            return self._stubs[service]

    def _open(self, address: str, options: list[tuple[str, Any]]) -> Any:
        if self._tls is None:
            return self._open_channel(address, options=options)
        if self._tls.name:
            options.append(("grpc.ssl_target_name_override", self._tls.name))
        shown = grpc.ssl_channel_credentials(self._tls.ca, self._tls.key, self._tls.certificate)
        return self._open_secure_channel(address, shown, options=options)

    def _shown(self, service: Service) -> tuple[tuple[str, str | bytes], ...]:
        token = self._token(service) if callable(self._token) else self._token
        return (("authorization", f"Bearer {token}"),) if token else ()

    def _seconds(self, call: Call[Any], timeout: float | None) -> float:
        if timeout is not None:
            return timeout
        return self._worker_timeout if call.waits_for_workers else self._timeout

    def _error(self, call: Call[Any], timeout: float | None, error: grpc.RpcError) -> TorchdError:
        return from_rpc_error(error, self._addresses[call.service], self._seconds(call, timeout))

    def _not_ready(self, call: Call[int], timeout: float | None, last: int | None) -> TorchdError:
        """The error of a wait for readiness that ended at its timeout; `last` is the last status that came."""
        address, seconds = self._addresses["health"], self._seconds(call, timeout)
        name = call.request.service  # type: ignore[attr-defined]
        what = f"model '{name}'" if name else "the daemon"
        match last:
            case None:
                message = f"no daemon answered at {address} within {seconds:g} s; start one with `torchd serve`"
            case HealthCheckResponse.SERVICE_UNKNOWN:
                message = f"{what} was not registered at {address} within {seconds:g} s"
            case _:
                message = f"{what} at {address} was not ready within {seconds:g} s"
        return DeadlineExceeded(message, grpc.StatusCode.DEADLINE_EXCEEDED, address=address)

    def _watch_ended(self) -> TorchdError:
        address = self._addresses["health"]
        return Unavailable(f"the daemon at {address} stopped telling its health", address=address)


def _options(address: str, max_message_bytes: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # A daemon that starts is found within two seconds; by gRPC's defaults it can take two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # No proxy can reach this host's loopback for us, though http_proxy in the environment says to ask it.
        ("grpc.enable_http_proxy", int(not address.startswith(_LOOPBACK))),
    ]


def _pairs(metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
    pairs = metadata.items() if isinstance(metadata, Mapping) else metadata
    return tuple((name.lower(), value) for name, value in pairs)  # gRPC refuses names in upper case
