"""What answers an HTTP request, now or later, and the head that is written before its body."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import TypeAlias

MAX_ANSWER_HEAD_BYTES = 64 * 1024

WITHOUT_BODY = frozenset({204, 304})
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_OUR_HEADERS = frozenset({"connection", "content-length", "transfer-encoding"})
_REASONS = {status.value: status.phrase for status in HTTPStatus}
# What a status that nobody has named is called, by its first digit.
_KINDS = {2: "Success", 3: "Redirection", 4: "Client Error", 5: "Server Error"}

Whole = bytes | bytearray | memoryview
# The same, for isinstance, which is slow with a union.
WHOLE = (bytes, bytearray, memoryview)


@dataclass(slots=True)
class HttpResponse:
    """An answer; a body that is an async iterator is sent as it comes, one chunk an item, and always closed.

    `reason` None means the standard phrase, "" an empty one. `request_id` becomes the header x-request-id. Connection,
    Content-Length and Transfer-Encoding are the server's to write.
    """

    status: int
    headers: Iterable[tuple[str, str]] = ()
    body: Whole | AsyncIterator[bytes] = b""
    reason: str | None = None
    close: bool = False
    request_id: str | None = None


class Pending:
    """An answer that is being made, and tells by a plain call when it is there: awaiting would cost a task."""

    def when_answered(self, respond: Callable[[HttpResponse], None]) -> None:
        """Has `respond` called with the answer: once, now if it is there, never an error instead."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        raise NotImplementedError


Answer: TypeAlias = HttpResponse | Pending | Awaitable[HttpResponse]


def head_of(response: HttpResponse, version: str, keep: bool, more: tuple[tuple[str, str], ...] = ()) -> bytes:
    """Serialises the head; ValueError if a handler's status, reason or header would break the framing (S40).

    `more` are headers behind the answer's own.
    """
    lines = _lines(response.status, response.reason, (*response.headers, *more))
    if response.request_id is not None:
        lines += f"x-request-id: {response.request_id}\r\n"
    if isinstance(response.body, WHOLE):
        if response.status not in WITHOUT_BODY:
            lines += f"content-length: {len(response.body)}\r\n"
    elif version == "1.1":
        lines += "transfer-encoding: chunked\r\n"
    return f"{lines}connection: {'keep-alive' if keep else 'close'}\r\n\r\n".encode("latin-1")


@lru_cache(maxsize=64)  # answers differ in their bodies and their ids: their other headers are few
def _lines(status: int, reason: str | None, headers: tuple[tuple[str, str], ...]) -> str:
    parts = [_status_line(status, reason)]
    for name, value in headers:
        if "\r" in value or "\n" in value or "\0" in value:
            raise ValueError(f"the answer's header {name[:100]!r} has a line break or NUL in its value; remove it")
        parts += (_field(name), value, "\r\n")
    lines = "".join(parts)
    if len(lines.encode("latin-1")) > MAX_ANSWER_HEAD_BYTES:
        raise ValueError(f"the answer's headers are {len(lines)} bytes; at most {MAX_ANSWER_HEAD_BYTES} can be sent")
    return lines


def _status_line(status: int, reason: str | None) -> str:
    if not isinstance(status, int) or not 200 <= status <= 999:
        raise ValueError(f"the answer's status {status!r} is not a number from 200 to 999")
    phrase = _phrase(status) if reason is None else reason
    if len(phrase) > 256 or not phrase.isprintable():
        raise ValueError(f"the answer's reason phrase {phrase[:100]!r} is not one short printable line")
    return f"HTTP/1.1 {status} {phrase}\r\n"


def _phrase(status: int) -> str:
    return _REASONS.get(status) or f"{_KINDS.get(status // 100, 'Unknown Status')} ({status})"


@lru_cache(maxsize=256)
def _field(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"the answer's header name {name[:100]!r} is not a token (letters, digits, '-', '_')")
    if name.lower() in _OUR_HEADERS:
        raise ValueError(f"the answer's header {name!r} is written by the server; leave it out")
    return f"{name}: "
