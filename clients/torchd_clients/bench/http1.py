"""A client's side of one HTTP/1.1 connection: bytes in, answers out, one request at a time, no socket."""

from __future__ import annotations

import json


class BadAnswer(Exception):
    """What came is no HTTP/1.1; the connection is of no use any more."""


class Http1Client:
    """Reads one answer after the other. `closes`: the server ends the connection after this one."""

    def __init__(self, expect: bytes = b"") -> None:
        self._expect = expect
        self._buffer = b""
        self._pieces: list[bytes] = []
        self._missing = 0
        self._head = b""
        self._is_chunked = False
        self.closes = False

    def feed(self, data: bytes) -> str | None:
        """Takes what was read. None until the answer is whole; then why it is not good, empty if it is."""
        if self._missing:
            self._pieces.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return None
            data, self._pieces, self._missing = b"".join(self._pieces), [], 0
            return self._ended(data)
        if self._is_chunked:
            return self._chunked(data)
        if self._buffer:
            data = self._buffer + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = data
            return None
        self._buffer = b""
        return self._answer(data[:end], data, end + 4)

    def _answer(self, head: bytes, data: bytes, start: int) -> str | None:
        if not head.startswith(b"HTTP/1.1 "):
            raise BadAnswer(f"an answer that begins with {head[:20]!r}")
        lower = head.lower()
        if lower[9:12] == b"100":  # Continue
            return self.feed(data[start:])
        self._head = lower
        self.closes = b"\r\nconnection: close" in lower
        at = lower.find(b"\r\ncontent-length:")
        if at < 0:
            if b"\r\ntransfer-encoding: chunked" not in lower:
                raise BadAnswer("an answer without Content-Length or chunks")
            self._is_chunked = True
            return self._chunked(data[start:])
        line = lower.find(b"\r\n", at + 17)
        length = int(lower[at + 17 : line if line > 0 else len(lower)])
        body = data[start:]
        if len(body) < length:
            self._pieces, self._missing = [body], length - len(body)
            return None
        return self._ended(body)

    def _chunked(self, data: bytes) -> str | None:
        self._buffer += data
        if not self._buffer.endswith(b"0\r\n\r\n"):  # only there can an answer end: one is asked at a time
            return None
        body: list[bytes] = []
        rest = self._buffer
        while rest:
            size, found, after = rest.partition(b"\r\n")
            length = int(size.split(b";")[0], 16)
            if not found or len(after) < length + 2:
                return None
            if length == 0:
                self._buffer, self._is_chunked = b"", False
                return self._ended(b"".join(body))
            body.append(after[:length])
            rest = after[length + 2 :]
        return None

    def _ended(self, body: bytes) -> str:
        status = self._head[9:12]
        if status[:1] == b"2":
            if self._expect and self._expect not in body:
                return f"an answer without {self._expect.decode(errors='replace')!r}"
            return ""
        return f"HTTP {status.decode(errors='replace')}{_kind(body)}"


def _kind(body: bytes) -> str:
    """The type of error that the body names, as TorchServe's and ours do."""
    try:
        said = json.loads(body)
    except ValueError:
        return ""
    kind = said.get("type") if isinstance(said, dict) else None
    return f" {kind}" if isinstance(kind, str) else ""
