"""What a call can end with instead of an answer, and how a gRPC error becomes one of these classes.

    TorchdError
    |- BadRequest: ArchiveInvalid, DownloadFailed
    |- NotFound: ModelNotFound, VersionNotFound, ArchiveNotFound
    |- ModelExists, ArchiveExists, DefaultVersionInUse, NodeInUse
    |- Unauthenticated
    |- PermissionDenied: UrlNotAllowed, ModelApiDisabled
    |- Overloaded: QueueFull, SequenceLimit
    |- NotEnoughDevices
    |- SequenceEnded
    |- Unavailable: NoWorker, Draining; itself where no daemon was reached
    |- ModelFailed, LoadFailed
    |- DeadlineExceeded: DeadlineInQueue
    |- Cancelled
    |- HandlerFailed
    |- OutOfMemory, TooLarge
    |- WorkerDied: WorkerTimeout
    |- NotSupported
    |- InternalError

The daemon says what happened by a reason that stays the same over versions (google.rpc.ErrorInfo); the class is chosen
by it, and by the status code only where no reason came along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status


class TorchdError(Exception):
    """A call that got no answer. `retry_delay` (seconds) is set where trying again makes sense."""

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        *,
        retry_delay: float | None = None,
        metadata: Mapping[str, str] | None = None,
        address: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.retry_delay = retry_delay
        self.metadata = dict(metadata or {})
        self.address = address


class BadRequest(TorchdError):
    """The daemon cannot do what the request says; the message names the field and what would do."""


class ArchiveInvalid(BadRequest):
    """The archive to register is not a model archive."""


class DownloadFailed(BadRequest):
    """The daemon could not fetch the archive from its URL."""


class NotFound(TorchdError):
    """What was asked for is not there."""


class ModelNotFound(NotFound):
    """No model of this name is registered."""


class VersionNotFound(NotFound):
    """The model has no such version."""


class ArchiveNotFound(NotFound):
    """The daemon's model store has no such archive."""


class ModelExists(TorchdError):
    """This version of the model is registered already."""


class ArchiveExists(TorchdError):
    """The model store has a file of the name that the archive to fetch would get."""


class DefaultVersionInUse(TorchdError):
    """The default version cannot go while others stay."""


class NodeInUse(TorchdError):
    """The model is a node of a workflow; it comes and goes with it."""


class Unauthenticated(TorchdError):
    """The daemon wants a token, and got none or a wrong one."""


class PermissionDenied(TorchdError):
    """The daemon does not allow this."""


class UrlNotAllowed(PermissionDenied):
    """The archive lies where the daemon may not read."""


class ModelApiDisabled(PermissionDenied):
    """Registering and unregistering by clients is switched off."""


class Overloaded(TorchdError):
    """There is more work than the daemon's limits allow."""


class NotEnoughDevices(TorchdError):
    """More devices are asked for than are free; the message has the numbers."""


class QueueFull(Overloaded):
    """As many requests wait for the model as may wait."""


class SequenceLimit(Overloaded):
    """As many sequences are open, or requests of one wait, as may be."""


class SequenceEnded(TorchdError):
    """The sequence was closed, or its state is lost: it must be begun anew, with the start header."""


class Unavailable(TorchdError):
    """Not now, but perhaps soon; where no daemon was reached, the message says where none was."""


class NoWorker(Unavailable):
    """No worker is wanted for this model."""


class Draining(Unavailable):
    """The daemon, or the model, finishes its work and takes no more."""


class ModelFailed(TorchdError):
    """The model's workers failed too often and are not started again by themselves."""


class LoadFailed(TorchdError):
    """A worker could not load the model."""


class DeadlineExceeded(TorchdError):
    """The time for the call was over before its answer came."""


class DeadlineInQueue(DeadlineExceeded):
    """The time was over while the request waited: it was not run."""


class Cancelled(TorchdError):
    """The call was taken back."""


class HandlerFailed(TorchdError):
    """The model's handler raised, or what it returned cannot be an answer."""


class OutOfMemory(TorchdError):
    """The memory of the host or of the device did not suffice."""


class TooLarge(TorchdError):
    """A request or an answer is over a limit on its size."""


class WorkerDied(TorchdError):
    """The worker ended with the request in its hands; whether it was run is unknown."""


class DeviceLost(WorkerDied):
    """The worker's device could not be used any more; the request was not answered, and another worker starts."""


class WorkerTimeout(WorkerDied):
    """The worker did not answer in time and was ended."""


class NotSupported(TorchdError):
    """The daemon does not do this."""


class InternalError(TorchdError):
    """A fault of the daemon itself; its log knows more."""


CLASSES: dict[str | grpc.StatusCode, type[TorchdError]] = {
    "BAD_REQUEST": BadRequest,
    "BAD_ARCHIVE": ArchiveInvalid,
    "DOWNLOAD_FAILED": DownloadFailed,
    "MODEL_NOT_FOUND": ModelNotFound,
    "VERSION_NOT_FOUND": VersionNotFound,
    "ARCHIVE_NOT_FOUND": ArchiveNotFound,
    "MODEL_EXISTS": ModelExists,
    "DEFAULT_VERSION": DefaultVersionInUse,
    "BAD_TOKEN": Unauthenticated,
    "WRONG_SCOPE": PermissionDenied,
    "TOO_MANY_WRONG_TOKENS": Overloaded,
    "URL_NOT_ALLOWED": UrlNotAllowed,
    "MODEL_API_DISABLED": ModelApiDisabled,
    "OVERLOADED": Overloaded,
    "QUEUE_FULL": QueueFull,
    "NO_TICKET": Overloaded,
    "NOT_ENOUGH_DEVICES": NotEnoughDevices,
    "SEQUENCE_LIMIT": SequenceLimit,
    "SEQUENCE_CLOSED": SequenceEnded,
    "SEQUENCE_LOST": SequenceEnded,
    "NO_WORKER": NoWorker,
    "DRAINING": Draining,
    "MODEL_FAILED": ModelFailed,
    "POISON": ModelFailed,
    "LOAD_FAILED": LoadFailed,
    "DEADLINE": DeadlineExceeded,
    "DEADLINE_IN_QUEUE": DeadlineInQueue,
    "CANCELLED": Cancelled,
    "HANDLER_ERROR": HandlerFailed,
    "HANDLER_EXIT": HandlerFailed,
    "BAD_OUTPUT": HandlerFailed,
    "PREDICTION_ERROR": HandlerFailed,
    "OUT_OF_MEMORY": OutOfMemory,
    "TOO_LARGE": TooLarge,
    "RESPONSE_TOO_LARGE": TooLarge,
    "WORKER_DIED": WorkerDied,
    "WORKER_TIMEOUT": WorkerTimeout,
    "DEVICE_LOST": DeviceLost,
    "WORKFLOW_NOT_FOUND": NotFound,
    "WORKFLOW_ARCHIVE_NOT_FOUND": ArchiveNotFound,
    "WORKFLOW_EXISTS": ModelExists,
    "WORKFLOW_NOT_REGISTERED": LoadFailed,
    "BAD_WORKFLOW": ArchiveInvalid,
    "ARCHIVE_EXISTS": ArchiveExists,
    "REDIRECT_NOT_ALLOWED": UrlNotAllowed,
    "FETCH_TIMEOUT": DownloadFailed,
    "DEPENDENCIES_FAILED": LoadFailed,
    "NODE_IN_USE": NodeInUse,
    "NODE_FAILED": HandlerFailed,
    "NODE_OVERLOADED": Overloaded,
    "NODE_UNAVAILABLE": Unavailable,
    "NODE_TIMEOUT": DeadlineExceeded,
    "UNIMPLEMENTED": NotSupported,
    "INTERNAL": InternalError,
    # Without a reason, or with one of a later daemon:
    grpc.StatusCode.INVALID_ARGUMENT: BadRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: ModelExists,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: NotSupported,
    grpc.StatusCode.UNKNOWN: InternalError,
    grpc.StatusCode.INTERNAL: InternalError,
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def from_rpc_error(error: Any, address: str, timeout: float | None = None) -> TorchdError:
    """The typed form of a grpc.RpcError, blocking or aio, of a call to `address` that had `timeout` seconds."""
    status = _status_of(error)
    if status is not None:
        return from_status(status, address)
    return _from_code(error.code(), error.details() or "", address, timeout)


def from_status(status: Status, address: str = "") -> TorchdError:
    """The typed form of a google.rpc.Status that the daemon at `address` sent, or one message of its answer carried."""
    info, retry = ErrorInfo(), RetryInfo()
    for detail in status.details:
        for wanted in (info, retry):
            if detail.Is(wanted.DESCRIPTOR):
                detail.Unpack(wanted)
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    kind = CLASSES.get(info.reason) or CLASSES.get(code, TorchdError)
    return kind(
        status.message or f"the daemon answered {code.name} without a message",
        code,
        info.reason,
        retry_delay=retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None,
        metadata=info.metadata,
        address=address,
    )


def _status_of(error: Any) -> Status | None:
    try:
        return rpc_status.from_call(error)
    except (ValueError, DecodeError):  # something on the way changed the code, or cut the metadata: the code is left
        return None


def _from_code(code: grpc.StatusCode, details: str, address: str, timeout: float | None) -> TorchdError:
    """An error of gRPC itself, or of a server that is no torchd."""
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            message = (
                f"no daemon answers at {address}; start one with `torchd serve`, or name the address of one ({details})"
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED if timeout is not None:
            message = f"no answer from {address} within {timeout:g} s; a longer timeout may help"
        case grpc.StatusCode.RESOURCE_EXHAUSTED:  # torchd gives a reason with its own: this is gRPC's limit on messages
            message = f"{details} ({address}); the client's limit is its max_message_bytes"
            return TooLarge(message, code, address=address)
        case _:
            message = details or f"{address} answered {code.name} without a message"
    return CLASSES.get(code, TorchdError)(message, code, address=address)
