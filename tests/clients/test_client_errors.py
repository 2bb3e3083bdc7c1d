"""How gRPC's errors become classes: over a real connection, by the daemon's reason first, else by the code."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import grpc
import pytest
from clients.fake_server import FakeServer, status
from google.rpc.status_pb2 import Status
from grpc import StatusCode as Code

from torchd_clients import errors
from torchd_clients.errors import CLASSES, TorchdError
from torchd_server.surfaces.status import TABLE

# (code, reason, class) by the architecture's table of errors.
TOLD = [
    (Code.NOT_FOUND, "MODEL_NOT_FOUND", errors.ModelNotFound),
    (Code.NOT_FOUND, "VERSION_NOT_FOUND", errors.VersionNotFound),
    (Code.NOT_FOUND, "ARCHIVE_NOT_FOUND", errors.ArchiveNotFound),
    (Code.INVALID_ARGUMENT, "BAD_REQUEST", errors.BadRequest),
    (Code.INVALID_ARGUMENT, "BAD_ARCHIVE", errors.ArchiveInvalid),
    (Code.INVALID_ARGUMENT, "DOWNLOAD_FAILED", errors.DownloadFailed),
    (Code.PERMISSION_DENIED, "URL_NOT_ALLOWED", errors.UrlNotAllowed),
    (Code.ALREADY_EXISTS, "MODEL_EXISTS", errors.ModelExists),
    (Code.FAILED_PRECONDITION, "DEFAULT_VERSION", errors.DefaultVersionInUse),
    (Code.PERMISSION_DENIED, "MODEL_API_DISABLED", errors.ModelApiDisabled),
    (Code.PERMISSION_DENIED, "BAD_TOKEN", errors.Unauthenticated),
    (Code.PERMISSION_DENIED, "WRONG_SCOPE", errors.PermissionDenied),
    (Code.RESOURCE_EXHAUSTED, "TOO_MANY_WRONG_TOKENS", errors.Overloaded),
    (Code.UNAUTHENTICATED, "BAD_TOKEN", errors.Unauthenticated),
    (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", errors.QueueFull),
    (Code.RESOURCE_EXHAUSTED, "NO_TICKET", errors.Overloaded),
    (Code.RESOURCE_EXHAUSTED, "NOT_ENOUGH_DEVICES", errors.NotEnoughDevices),
    (Code.RESOURCE_EXHAUSTED, "SEQUENCE_LIMIT", errors.SequenceLimit),
    (Code.ABORTED, "SEQUENCE_CLOSED", errors.SequenceEnded),
    (Code.ABORTED, "SEQUENCE_LOST", errors.SequenceEnded),
    (Code.RESOURCE_EXHAUSTED, "OVERLOADED", errors.Overloaded),
    (Code.UNAVAILABLE, "NO_WORKER", errors.NoWorker),
    (Code.UNAVAILABLE, "DRAINING", errors.Draining),
    (Code.FAILED_PRECONDITION, "MODEL_FAILED", errors.ModelFailed),
    (Code.FAILED_PRECONDITION, "POISON", errors.ModelFailed),
    (Code.FAILED_PRECONDITION, "LOAD_FAILED", errors.LoadFailed),
    (Code.DEADLINE_EXCEEDED, "DEADLINE_IN_QUEUE", errors.DeadlineInQueue),
    (Code.DEADLINE_EXCEEDED, "DEADLINE", errors.DeadlineExceeded),
    (Code.CANCELLED, "CANCELLED", errors.Cancelled),
    (Code.UNKNOWN, "HANDLER_ERROR", errors.HandlerFailed),
    (Code.UNKNOWN, "HANDLER_EXIT", errors.HandlerFailed),
    (Code.UNKNOWN, "BAD_OUTPUT", errors.HandlerFailed),
    (Code.NOT_FOUND, "PREDICTION_ERROR", errors.HandlerFailed),  # the handler chose 404
    (Code.RESOURCE_EXHAUSTED, "RESPONSE_TOO_LARGE", errors.TooLarge),
    (Code.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", errors.OutOfMemory),
    (Code.UNAVAILABLE, "WORKER_DIED", errors.WorkerDied),
    (Code.UNAVAILABLE, "DEVICE_LOST", errors.DeviceLost),
    (Code.DEADLINE_EXCEEDED, "WORKER_TIMEOUT", errors.WorkerTimeout),
    (Code.RESOURCE_EXHAUSTED, "TOO_LARGE", errors.TooLarge),
    (Code.NOT_FOUND, "WORKFLOW_NOT_FOUND", errors.NotFound),
    (Code.NOT_FOUND, "WORKFLOW_ARCHIVE_NOT_FOUND", errors.ArchiveNotFound),
    (Code.ALREADY_EXISTS, "WORKFLOW_EXISTS", errors.ModelExists),
    (Code.FAILED_PRECONDITION, "WORKFLOW_NOT_REGISTERED", errors.LoadFailed),
    (Code.INVALID_ARGUMENT, "BAD_WORKFLOW", errors.ArchiveInvalid),
    (Code.ALREADY_EXISTS, "ARCHIVE_EXISTS", errors.ArchiveExists),
    (Code.PERMISSION_DENIED, "REDIRECT_NOT_ALLOWED", errors.UrlNotAllowed),
    (Code.DEADLINE_EXCEEDED, "FETCH_TIMEOUT", errors.DownloadFailed),
    (Code.FAILED_PRECONDITION, "DEPENDENCIES_FAILED", errors.LoadFailed),
    (Code.FAILED_PRECONDITION, "NODE_IN_USE", errors.NodeInUse),
    (Code.UNKNOWN, "NODE_FAILED", errors.HandlerFailed),
    (Code.RESOURCE_EXHAUSTED, "NODE_OVERLOADED", errors.Overloaded),
    (Code.UNAVAILABLE, "NODE_UNAVAILABLE", errors.Unavailable),
    (Code.DEADLINE_EXCEEDED, "NODE_TIMEOUT", errors.DeadlineExceeded),
    (Code.UNIMPLEMENTED, "UNIMPLEMENTED", errors.NotSupported),
    (Code.INTERNAL, "INTERNAL", errors.InternalError),
]


@pytest.mark.parametrize(("code", "reason", "kind"), TOLD, ids=[f"{reason}-{code.name}" for code, reason, _ in TOLD])
def test_a_reason_becomes_its_class(
    client: Any, server: FakeServer, code: Code, reason: str, kind: type[TorchdError]
) -> None:
    server.failure = status(code, reason, "what happened")
    with pytest.raises(TorchdError) as caught:
        client.predict("bert", b"")
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.reason, error.message, str(error)) == (code, reason, "what happened", "what happened")
    assert (error.metadata, error.address, error.retry_delay) == ({"model": "bert"}, server.address, None)


def test_every_reason_of_the_table_is_tested() -> None:
    assert {reason for _, reason, _ in TOLD} == {key for key in CLASSES if isinstance(key, str)}


def test_every_reason_the_daemon_gives_has_a_class() -> None:
    assert {row.reason for row in TABLE.values()} <= set(CLASSES)


@pytest.mark.parametrize("seconds", [0.0, 0.25])
def test_the_delay_before_a_retry_comes_along(client: Any, server: FakeServer, seconds: float) -> None:
    server.failure = status(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", "full", retry_delay=seconds)
    with pytest.raises(errors.QueueFull) as caught:
        client.predict("bert", b"")
    assert caught.value.retry_delay == seconds


def test_a_reason_of_a_later_daemon_falls_back_on_its_code(client: Any, server: FakeServer) -> None:
    server.failure = status(Code.INVALID_ARGUMENT, "NOT_INVENTED_YET", "no")
    with pytest.raises(errors.BadRequest) as caught:
        client.scale("bert", 1)
    assert caught.value.reason == "NOT_INVENTED_YET"


def test_a_limit_without_a_known_reason_is_not_taken_for_a_size(client: Any, server: FakeServer) -> None:
    server.failure = status(Code.RESOURCE_EXHAUSTED, "NOT_INVENTED_YET", "no")
    with pytest.raises(TorchdError) as caught:
        client.ping()
    assert type(caught.value) is TorchdError


def test_a_server_without_reasons_is_understood_by_its_codes(client: Any, server: FakeServer) -> None:
    server.failure = Status(code=Code.NOT_FOUND.value[0], message="Model not found: bert")
    with pytest.raises(errors.NotFound, match="Model not found: bert") as caught:
        client.describe("bert")
    assert caught.value.reason == ""


def test_an_answer_over_the_clients_limit_names_the_setting(server: FakeServer, connect: Any) -> None:
    """Field row 44."""
    client = connect(server.address, max_message_bytes=1000)
    with pytest.raises(errors.TooLarge, match=r"max_message_bytes"):
        client.predict("echo", b"x" * 2000)


def test_a_daemon_that_is_killed_is_unavailable(connect: Any) -> None:
    serve = "from clients.fake_server import FakeServer; print(FakeServer().address, flush=True); input()"
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {[entry for entry in sys.path if entry]!r}; {serve}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as daemon:
        try:
            address = daemon.stdout.readline().strip()  # type: ignore[union-attr]
            chunks = connect(address).stream("endless", b"")
            assert next(chunks) == b"first"
        finally:
            daemon.kill()
        with pytest.raises(errors.Unavailable, match=f"no daemon answers at {address}"):
            next(chunks)


def test_the_grpc_error_stays_the_cause(client: Any, server: FakeServer) -> None:
    server.failure = status(Code.NOT_FOUND, "MODEL_NOT_FOUND", "no")
    with pytest.raises(errors.ModelNotFound) as caught:
        client.unregister("bert")
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_an_error_can_be_sent_to_another_process() -> None:
    """copy goes the way pickle goes: programs call models from process pools."""
    error = errors.QueueFull("full", Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_delay=1.5, metadata={"model": "m"})
    twin = copy.copy(error)
    assert type(twin) is errors.QueueFull
    assert vars(twin) == vars(error)
    assert str(twin) == "full"
