"""The table of codes: every error has a row, and the rows are what was agreed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import grpc
import pytest
from fakes import in_loop
from google.rpc import code_pb2, error_details_pb2

from torchd_server import errors
from torchd_server.surfaces.rest.answers import error_answer
from torchd_server.surfaces.status import DOMAIN, TABLE, Row, abort, grpc_status_of, http_status_of, row_of

# The agreed table, as far as the classes exist: class, HTTP, gRPC, reason, and whether a retry makes sense.
AGREED: list[tuple[errors.TorchdError, int, str, str, bool]] = [
    (errors.ModelNotFound("m"), 404, "NOT_FOUND", "MODEL_NOT_FOUND", False),
    (errors.VersionNotFound("m", "3", ["1"]), 404, "NOT_FOUND", "VERSION_NOT_FOUND", False),
    (errors.BadRequest("no"), 400, "INVALID_ARGUMENT", "BAD_REQUEST", False),
    (errors.ArchiveInvalid("no"), 400, "INVALID_ARGUMENT", "BAD_ARCHIVE", False),
    (errors.UrlNotAllowed("no"), 404, "PERMISSION_DENIED", "URL_NOT_ALLOWED", False),
    (errors.ArchiveNotFound("no"), 404, "NOT_FOUND", "ARCHIVE_NOT_FOUND", False),
    (errors.ModelExists("m", "1"), 409, "ALREADY_EXISTS", "MODEL_EXISTS", False),
    (errors.DefaultVersionInUse("m"), 403, "FAILED_PRECONDITION", "DEFAULT_VERSION", False),
    (errors.ModelApiDisabled(), 405, "PERMISSION_DENIED", "MODEL_API_DISABLED", False),
    (errors.NotEnoughDevices("3 wanted, 2 free"), 409, "RESOURCE_EXHAUSTED", "NOT_ENOUGH_DEVICES", False),
    (errors.QueueFull("m", "1", 100), 503, "RESOURCE_EXHAUSTED", "QUEUE_FULL", True),
    (errors.Overloaded("no"), 503, "RESOURCE_EXHAUSTED", "OVERLOADED", True),
    (errors.NoWorker("m", "1"), 503, "UNAVAILABLE", "NO_WORKER", True),
    (errors.Draining(), 503, "UNAVAILABLE", "DRAINING", True),
    (errors.ModelFailed("m", "1", "no"), 503, "FAILED_PRECONDITION", "MODEL_FAILED", False),
    (errors.LoadFailed("no"), 500, "FAILED_PRECONDITION", "LOAD_FAILED", False),
    (errors.OutOfMemory("no"), 507, "RESOURCE_EXHAUSTED", "OUT_OF_MEMORY", False),
    (errors.DeadlineInQueue("no"), 504, "DEADLINE_EXCEEDED", "DEADLINE_IN_QUEUE", False),
    (errors.DeadlineExceeded("no"), 504, "DEADLINE_EXCEEDED", "DEADLINE", False),
    (errors.Cancelled("no"), 499, "CANCELLED", "CANCELLED", False),
    (errors.HandlerFailed("no"), 503, "UNKNOWN", "HANDLER_ERROR", False),
    (errors.WorkerDied("no"), 500, "UNAVAILABLE", "WORKER_DIED", False),
    (errors.DeviceLost("no"), 507, "UNAVAILABLE", "DEVICE_LOST", False),
    (errors.WorkerProtocolBroken("no"), 500, "UNAVAILABLE", "WORKER_DIED", False),
    (errors.WorkerTimeout("no"), 500, "DEADLINE_EXCEEDED", "WORKER_TIMEOUT", False),
    (errors.NotSupported("no"), 501, "UNIMPLEMENTED", "UNIMPLEMENTED", False),
]
AGREED_IDS = [type(row[0]).__name__ for row in AGREED]


def classes(of: type[Exception] = errors.TorchdError) -> Iterator[type[Exception]]:
    """Every error class, itself not included."""
    for cls in of.__subclasses__():
        yield cls
        yield from classes(cls)


def details(error: Exception) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo | None]:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    has_retry = False
    for detail in grpc_status_of(error).details:
        detail.Unpack(info)
        has_retry |= detail.Unpack(retry)
    return info, retry if has_retry else None


@pytest.mark.parametrize(("error", "http", "code", "reason", "retry"), AGREED, ids=AGREED_IDS)
def test_the_codes_are_the_agreed_ones(
    error: errors.TorchdError, http: int, code: str, reason: str, retry: bool
) -> None:
    """P03: one table for both protocols."""
    status = grpc_status_of(error)
    info, retry_info = details(error)
    assert http_status_of(error) == http
    assert code_pb2.Code.Name(status.code) == code
    assert (info.reason, info.domain) == (reason, DOMAIN)
    assert (retry_info is not None) == retry
    assert status.message == str(error)


@pytest.mark.parametrize("cls", list(classes()), ids=lambda cls: cls.__name__)
def test_every_error_class_has_a_row_of_its_own_family(cls: type[Exception]) -> None:
    """INTERNAL is for our own bugs: no error of ours may fall through to it."""
    abstract = {errors.NotFound, errors.Unavailable}  # raised by their children only
    if cls in abstract:
        assert all(child in TABLE for child in cls.__subclasses__())
        return
    assert any(base in TABLE for base in cls.__mro__ if issubclass(base, errors.TorchdError))


def test_the_reasons_are_stable_words() -> None:
    """AIP-193: UPPER_SNAKE_CASE of at most 63 characters, no two rows with one: InvalidKey is the posture's own
    answer to what Unauthorized is, and a class may differ from the one above it by TorchServe's sentence alone."""
    others = {cls: row for cls, row in TABLE.items() if cls is not errors.InvalidKey}
    own = {cls: row for cls, row in others.items() if not _has_only_a_sentence(cls, row)}
    reasons = [row.reason for row in own.values()]
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]{1,61}[A-Z0-9]", reason) for reason in reasons)
    assert len(set(reasons)) == len(reasons)
    assert all(400 <= row.http <= 599 and row.grpc != code_pb2.OK for row in TABLE.values())


def _has_only_a_sentence(cls: type[Exception], row: Row) -> bool:
    above = TABLE.get(cls.__bases__[0])
    return above is not None and replace(above, sentence=row.sentence) == row


@pytest.mark.parametrize(("status", "code"), [(422, "FAILED_PRECONDITION"), (500, "INTERNAL"), (513, "INTERNAL")])
def test_a_status_the_handler_chose_has_torchserves_code(status: int, code: str) -> None:
    """Row 1.4: also where no line of the map names it."""
    found = grpc_status_of(errors.PredictionFailed("no", status=status))
    assert code_pb2.Code.Name(found.code) == code


def test_a_retry_comes_with_its_delay_and_the_model_with_its_name() -> None:
    info, retry = details(errors.QueueFull("bert", "2.0", 100))
    assert retry is not None
    assert retry.retry_delay.ToTimedelta().total_seconds() == errors.QueueFull.retry_after_seconds
    assert dict(info.metadata) == {"model": "bert", "version": "2.0"}


def test_an_error_of_ours_that_nobody_expected_tells_nothing() -> None:
    """S42, E20."""
    secret = KeyError("/home/me/.token")
    status = grpc_status_of(secret)
    assert (status.code, details(secret)[0].reason) == (code_pb2.INTERNAL, "INTERNAL")
    assert "token" not in str(status)
    answer = error_answer(secret)
    assert answer.status == 500
    assert b"token" not in answer.body  # type: ignore[operator] # a document is bytes


@pytest.mark.parametrize(("status", "http", "code"), [(404, 404, "NOT_FOUND"), (429, 429, "RESOURCE_EXHAUSTED")])
def test_a_handlers_own_status_stands_above_the_table(status: int, http: int, code: str) -> None:
    error = errors.PredictionFailed("no", status=status)
    assert http_status_of(error) == http
    assert code_pb2.Code.Name(grpc_status_of(error).code) == code


@pytest.mark.parametrize("status", [0, 200, 204, 302, 600, 10**6])
def test_a_handlers_error_is_an_error_whatever_status_it_chose(status: int) -> None:
    error = errors.PredictionFailed("no", status=status)
    assert http_status_of(error) == row_of(error).http
    assert grpc_status_of(error).code == row_of(error).grpc


class RecordingContext:
    """Takes the status a call was ended with."""

    status: grpc.Status | None = None

    async def abort_with_status(self, status: grpc.Status) -> None:
        self.status = status
        raise grpc.aio.AbortError


@in_loop
async def test_a_call_ends_with_the_status_and_its_details() -> None:
    context = RecordingContext()
    with pytest.raises(grpc.aio.AbortError):
        await abort(context, errors.NoWorker("m", "1.0"))  # type: ignore[arg-type] # as much of a context as it uses
    assert context.status is not None
    assert context.status.code is grpc.StatusCode.UNAVAILABLE
    assert [key for key, _ in context.status.trailing_metadata] == ["grpc-status-details-bin"]


def test_rest_answers_the_code_the_type_and_when_to_come_back() -> None:
    answer = error_answer(errors.NoWorker("m", "1.0"), "some-id")
    headers = dict(answer.headers)
    assert (answer.status, headers["x-torchd-reason"], headers["Retry-After"]) == (503, "NO_WORKER", "1")
    assert answer.request_id == "some-id"
    assert b'"type": "ServiceUnavailableException"' in answer.body  # type: ignore[operator]
