"""The only file with codes: one row per error class, gRPC and HTTP side by side.

A client programs against `reason`, which is stable and machine-readable (google.rpc.ErrorInfo, AIP-193); where a retry
makes sense, google.rpc.RetryInfo says after how long. REST answers TorchServe's code, type and, where it has one,
TorchServe's sentence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from torchd_server import errors

logger = logging.getLogger(__name__)
DOMAIN = "torchd"


@dataclass(frozen=True, slots=True)
class Row:
    """What one error class is called outside."""

    grpc: int
    reason: str
    http: int
    # TorchServe's name of the error, in the REST document's "type".
    type: str
    # TorchServe's sentence where it has one, else ours.
    sentence: Callable[[Any], str] = str


def _no_worker_sentence(error: Any) -> str:
    asked_for = error.asked_for if isinstance(error, errors.NoWorker) else "inference"
    version = f' Version {error.named}"' if getattr(error, "named", "") else ""
    sentence = f'Model "{error.model}"{version} has no worker to serve {asked_for} request. '
    sentence += "Please use scale workers API to add workers."
    if asked_for == "describe":
        return sentence
    return (
        f"{sentence} If this is a sequence inference, please check if it is closed, or expired; "
        "or exceeds maxSequenceJobQueueSize"
    )


def _download_sentence(error: errors.DownloadFailed) -> str:
    return f"Failed to download archive from: {error.url}"


def _node_sentence(error: errors.NodeFailed) -> str:
    return f"Error executing {error.node}"


def _refusal_sentence(error: Any) -> str:
    return f"{_no_worker_sentence(error)} ({error})"


_C = code_pb2
TABLE: dict[type[Exception], Row] = {
    errors.BadRequest: Row(_C.INVALID_ARGUMENT, "BAD_REQUEST", 400, "BadRequestException"),
    errors.ModelNotFound: Row(
        _C.NOT_FOUND, "MODEL_NOT_FOUND", 404, "ModelNotFoundException", lambda e: f"Model not found: {e.model}"
    ),
    errors.VersionNotFound: Row(
        _C.NOT_FOUND,
        "VERSION_NOT_FOUND",
        404,
        "ModelVersionNotFoundException",
        lambda e: f"Model version: {e.version} does not exist for model: {e.model}",
    ),
    errors.DefaultVersionNotFound: Row(
        _C.NOT_FOUND,
        "VERSION_NOT_FOUND",
        404,
        "ModelVersionNotFoundException",
        lambda e: f"Model version {e.version} does not exist for model {e.model}",
    ),
    errors.UrlNotAllowed: Row(_C.PERMISSION_DENIED, "URL_NOT_ALLOWED", 404, "ModelNotFoundException"),
    errors.RedirectNotAllowed: Row(_C.PERMISSION_DENIED, "REDIRECT_NOT_ALLOWED", 404, "ModelNotFoundException"),
    errors.ArchiveNotFound: Row(_C.NOT_FOUND, "ARCHIVE_NOT_FOUND", 404, "ModelNotFoundException"),
    errors.ArchiveInvalid: Row(_C.INVALID_ARGUMENT, "BAD_ARCHIVE", 400, "InvalidModelException"),
    errors.ArchiveExists: Row(_C.ALREADY_EXISTS, "ARCHIVE_EXISTS", 500, "InternalServerException"),
    errors.DownloadFailed: Row(
        _C.FAILED_PRECONDITION, "DOWNLOAD_FAILED", 400, "DownloadArchiveException", _download_sentence
    ),
    errors.DownloadTooLarge: Row(
        _C.FAILED_PRECONDITION, "TOO_LARGE", 413, "DownloadArchiveException", _download_sentence
    ),
    errors.DownloadTimeout: Row(
        _C.DEADLINE_EXCEEDED, "FETCH_TIMEOUT", 504, "DownloadArchiveException", _download_sentence
    ),
    errors.DependenciesFailed: Row(_C.FAILED_PRECONDITION, "DEPENDENCIES_FAILED", 400, "ModelException"),
    errors.WorkflowNotFound: Row(
        _C.NOT_FOUND,
        "WORKFLOW_NOT_FOUND",
        404,
        "WorkflowNotFoundException",
        lambda e: f"Workflow not found: {e.workflow}",
    ),
    errors.WorkflowArchiveNotFound: Row(_C.NOT_FOUND, "WORKFLOW_ARCHIVE_NOT_FOUND", 404, "WorkflowNotFoundException"),
    errors.WorkflowInvalid: Row(_C.INVALID_ARGUMENT, "BAD_WORKFLOW", 400, "InvalidDAGException"),
    errors.WorkflowExists: Row(_C.ALREADY_EXISTS, "WORKFLOW_EXISTS", 409, "ConflictStatusException"),
    errors.WorkflowNotRegistered: Row(_C.FAILED_PRECONDITION, "WORKFLOW_NOT_REGISTERED", 500, "WorkflowException"),
    errors.NodeInUse: Row(_C.FAILED_PRECONDITION, "NODE_IN_USE", 409, "ConflictStatusException"),
    errors.NodeFailed: Row(_C.UNKNOWN, "NODE_FAILED", 500, "InternalServerException", _node_sentence),
    errors.NodeOverloaded: Row(
        _C.RESOURCE_EXHAUSTED, "NODE_OVERLOADED", 503, "ServiceUnavailableException", _node_sentence
    ),
    errors.NodeUnavailable: Row(_C.UNAVAILABLE, "NODE_UNAVAILABLE", 503, "ServiceUnavailableException", _node_sentence),
    errors.NodeTimeout: Row(_C.DEADLINE_EXCEEDED, "NODE_TIMEOUT", 500, "InternalServerException", _node_sentence),
    errors.ModelExists: Row(_C.ALREADY_EXISTS, "MODEL_EXISTS", 409, "ConflictStatusException"),
    errors.DefaultVersionInUse: Row(
        _C.FAILED_PRECONDITION,
        "DEFAULT_VERSION",
        403,
        "InvalidModelVersionException",
        lambda e: f"Cannot remove default version for model {e.model}",
    ),
    errors.ModelApiDisabled: Row(
        _C.PERMISSION_DENIED,
        "MODEL_API_DISABLED",
        405,
        "MethodNotAllowedException",
        lambda e: f"Requested method is not allowed, please refer to API document. ({e})",
    ),
    errors.Unauthorized: Row(_C.UNAUTHENTICATED, "BAD_TOKEN", 401, "Unauthorized"),
    errors.InvalidKey: Row(_C.PERMISSION_DENIED, "BAD_TOKEN", 400, "InvalidKeyException"),
    errors.WrongScope: Row(_C.PERMISSION_DENIED, "WRONG_SCOPE", 403, "Forbidden"),
    errors.TooManyWrongTokens: Row(_C.RESOURCE_EXHAUSTED, "TOO_MANY_WRONG_TOKENS", 429, "TooManyRequests"),
    errors.QueueFull: Row(_C.RESOURCE_EXHAUSTED, "QUEUE_FULL", 503, "ServiceUnavailableException", _refusal_sentence),
    errors.NotEnoughDevices: Row(_C.RESOURCE_EXHAUSTED, "NOT_ENOUGH_DEVICES", 409, "ConflictStatusException"),
    errors.NoTicket: Row(_C.RESOURCE_EXHAUSTED, "NO_TICKET", 503, "ServiceUnavailableException", _refusal_sentence),
    errors.SequenceLimit: Row(
        _C.RESOURCE_EXHAUSTED, "SEQUENCE_LIMIT", 503, "ServiceUnavailableException", _refusal_sentence
    ),
    errors.SequenceEnded: Row(_C.ABORTED, "SEQUENCE_CLOSED", 503, "ServiceUnavailableException", _refusal_sentence),
    errors.SequenceLost: Row(_C.ABORTED, "SEQUENCE_LOST", 503, "ServiceUnavailableException", _refusal_sentence),
    errors.Overloaded: Row(_C.RESOURCE_EXHAUSTED, "OVERLOADED", 503, "ServiceUnavailableException"),
    errors.NoWorker: Row(_C.UNAVAILABLE, "NO_WORKER", 503, "ServiceUnavailableException", _no_worker_sentence),
    errors.Draining: Row(_C.UNAVAILABLE, "DRAINING", 503, "ServiceUnavailableException"),
    errors.ModelFailed: Row(_C.FAILED_PRECONDITION, "MODEL_FAILED", 503, "ServiceUnavailableException"),
    errors.OutOfMemory: Row(
        _C.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", 507, "InternalServerException", lambda e: "Out of resources"
    ),
    errors.LoadOutOfMemory: Row(_C.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", 507, "InternalServerException"),
    errors.LoadFailed: Row(_C.FAILED_PRECONDITION, "LOAD_FAILED", 500, "InternalServerException"),
    errors.DeadlineInQueue: Row(_C.DEADLINE_EXCEEDED, "DEADLINE_IN_QUEUE", 504, "DeadlineExceeded"),
    errors.DeadlineExceeded: Row(_C.DEADLINE_EXCEEDED, "DEADLINE", 504, "DeadlineExceeded"),
    errors.Cancelled: Row(_C.CANCELLED, "CANCELLED", 499, "Cancelled"),
    errors.HandlerExit: Row(_C.UNKNOWN, "HANDLER_EXIT", 503, "InternalServerException", lambda e: "Prediction failed"),
    errors.BadOutput: Row(_C.UNKNOWN, "BAD_OUTPUT", 503, "InternalServerException"),
    errors.NoList: Row(
        _C.UNKNOWN, "BAD_OUTPUT", 503, "InternalServerException", lambda e: "Invalid model predict output"
    ),
    errors.WrongCount: Row(
        _C.UNKNOWN, "BAD_OUTPUT", 503, "InternalServerException", lambda e: "number of batch response mismatched"
    ),
    errors.Unsendable: Row(
        _C.UNKNOWN, "BAD_OUTPUT", 503, "InternalServerException", lambda e: "Unsupported model output data type."
    ),
    errors.ResponseTooLarge: Row(_C.RESOURCE_EXHAUSTED, "RESPONSE_TOO_LARGE", 503, "InternalServerException"),
    errors.PredictionFailed: Row(_C.UNKNOWN, "PREDICTION_ERROR", 500, "InternalServerException"),
    errors.HandlerFailed: Row(
        _C.UNKNOWN, "HANDLER_ERROR", 503, "InternalServerException", lambda e: "Prediction failed"
    ),
    errors.WorkerTimeout: Row(
        _C.DEADLINE_EXCEEDED, "WORKER_TIMEOUT", 500, "InternalServerException", lambda e: "Worker died."
    ),
    # TorchServe's answer to every text with CUDA in it.
    errors.DeviceLost: Row(_C.UNAVAILABLE, "DEVICE_LOST", 507, "InternalServerException", lambda e: "Out of resources"),
    errors.WorkerLost: Row(_C.UNAVAILABLE, "WORKER_DIED", 500, "InternalServerException", lambda e: "Worker died."),
    errors.NotSupported: Row(_C.UNIMPLEMENTED, "UNIMPLEMENTED", 501, "NotSupported"),
    Exception: Row(
        _C.INTERNAL,
        "INTERNAL",
        500,
        "InternalServerException",
        lambda e: "internal error of the server; its log has the rest",
    ),
}

# HTTP statuses a handler may choose, as gRPC sees them (TorchServe's own map, reference section 1.4).
_GRPC_OF_HTTP = {
    400: _C.INVALID_ARGUMENT,
    401: _C.UNAUTHENTICATED,
    403: _C.PERMISSION_DENIED,
    404: _C.NOT_FOUND,
    409: _C.ABORTED,
    413: _C.RESOURCE_EXHAUSTED,
    416: _C.OUT_OF_RANGE,
    429: _C.RESOURCE_EXHAUSTED,
    499: _C.CANCELLED,
    501: _C.UNIMPLEMENTED,
    503: _C.UNAVAILABLE,
    504: _C.DEADLINE_EXCEEDED,
}
_GRPC_OF_KIND = {4: _C.FAILED_PRECONDITION, 5: _C.INTERNAL}


def row_of(error: BaseException) -> Row:
    """The row of the error's class, or of the nearest class above it."""
    return next(TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)


def http_status_of(error: BaseException) -> int:
    """The HTTP status; a handler's own choice stands above the table."""
    chosen = error.status if isinstance(error, errors.HandlerFailed) else None
    return chosen if chosen is not None and 400 <= chosen <= 599 else row_of(error).http


def grpc_status_of(error: BaseException) -> status_pb2.Status:
    """google.rpc.Status with ErrorInfo and, where a retry makes sense, RetryInfo."""
    row = row_of(error)
    code = row.grpc
    if isinstance(error, errors.HandlerFailed) and error.status is not None:
        code = _GRPC_OF_HTTP.get(error.status) or _GRPC_OF_KIND.get(error.status // 100, code)
    # What is not ours to tell stays in the log.
    message = str(error) if isinstance(error, errors.TorchdError) else row.sentence(error)
    status = status_pb2.Status(code=code, message=message)
    named = {name: getattr(error, name) for name in ("model", "version") if hasattr(error, name)}
    _add(status, error_details_pb2.ErrorInfo(reason=row.reason, domain=DOMAIN, metadata=named))
    retry = error.retry_after_seconds if isinstance(error, errors.TorchdError) else None
    if retry is not None:
        seconds = int(retry)
        delay = Duration(seconds=seconds, nanos=int((retry - seconds) * 1e9))
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> None:
    """Ends a gRPC call with the error's status; never returns normally."""
    if not isinstance(error, errors.TorchdError):
        logger.error("internal error", exc_info=error)
    await context.abort_with_status(rpc_status.to_status(grpc_status_of(error)))


def _add(status: status_pb2.Status, detail: Any) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    status.details.append(packed)
