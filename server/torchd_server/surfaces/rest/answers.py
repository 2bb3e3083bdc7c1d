"""What every REST answer has in common: TorchServe's headers, its JSON documents, its error shape."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

from torchd_server import errors
from torchd_server.request_ids import new_request_id
from torchd_server.surfaces.rest.http1 import HttpResponse
from torchd_server.surfaces.rest.http1_answer import Whole
from torchd_server.surfaces.status import http_status_of, row_of
from torchd_server.torchserve import words

logger = logging.getLogger(__name__)
JSON = ("content-type", "application/json")
# On every answer, as TorchServe has them (reference section 2.5).
COMMON_HEADERS = (
    ("Pragma", "no-cache"),
    ("Cache-Control", "no-cache; no-store, must-revalidate, private"),
    ("Expires", "Thu, 01 Jan 1970 00:00:00 UTC"),
)
_COMMON_NAMES = frozenset(name.lower() for name, _ in COMMON_HEADERS)
_TYPES = {404: "ResourceNotFoundException", 405: "MethodNotAllowedException", 400: "BadRequestException"}
NOT_FOUND = "Requested resource is not found, please refer to API document."
NOT_ALLOWED = "Requested method is not allowed, please refer to API document."


def answer(
    status: int,
    body: Whole | AsyncIterator[bytes],
    headers: tuple[tuple[str, str], ...] = (),
    request_id: str | None = None,
    reason: str | None = None,
) -> HttpResponse:
    """An answer with the common headers, which stand above a handler's own of these names."""
    if headers:
        headers = tuple(header for header in headers if header[0].lower() not in _COMMON_NAMES)
    return HttpResponse(status, (*headers, *COMMON_HEADERS), body, reason, request_id=request_id or new_request_id())


def document(status: int, value: Any) -> HttpResponse:
    """A JSON document."""
    return answer(status, words.document(value).encode(), (JSON,))


def refusal(status: int, message: str, type_name: str | None = None, request_id: str | None = None) -> HttpResponse:
    """An error in TorchServe's shape; also what the HTTP server itself refuses with."""
    body = words.document({"code": status, "type": type_name or _TYPES.get(status, "HttpError"), "message": message})
    return answer(status, body.encode(), (JSON,), request_id)


def error_answer(error: Exception, request_id: str | None = None) -> HttpResponse:
    """The answer an error has; what is not ours to tell stays in the log."""
    if not isinstance(error, errors.TorchdError):
        logger.error("internal error", exc_info=error)
    row = row_of(error)
    response = refusal(http_status_of(error), row.sentence(error), row.type, request_id)
    retry = error.retry_after_seconds if isinstance(error, errors.TorchdError) else None
    headers = () if retry is None else (("Retry-After", str(max(1, round(retry)))),)
    if response.status == 401:
        headers = (*headers, ("WWW-Authenticate", 'Bearer realm="torchd"'))
    response.headers = (*response.headers, ("x-torchd-reason", row.reason), *headers)
    return response
