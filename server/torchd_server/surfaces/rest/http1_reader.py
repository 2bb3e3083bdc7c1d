"""HTTP/1.1 without a socket: received bytes become requests, or the reason why they are refused.

httptools parses; what its strict mode lets through is refused here. Whatever breaks the protocol ends the connection,
since the next byte of such a peer could be anything (request smuggling).
"""

from __future__ import annotations

import enum
import re
from collections import deque
from dataclasses import dataclass

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"})
VERSIONS = frozenset({"1.0", "1.1"})

# Bytes handed to the parser at once while no body of known length is being read: bounds how many pipelined requests
# are parsed ahead, and by how much a head that has not ended can pass its limit.
PIECE_BYTES = 8 * 1024
# What a chunked body may spend beyond its data: chunk sizes, line ends, and a few small extensions.
CHUNK_OVERHEAD_BYTES = 16 * 1024
BYTES_PER_CHUNK_HEAD = 32

_HOST = re.compile(r"[0-9A-Za-z._~%!$&'()*+,;=\[\]:-]*")
_ABSOLUTE_FORM = re.compile(r"https?://([^/?]+)([^?]*)", re.IGNORECASE)
_FRAMING_HEADERS = frozenset({b"host", b"content-length", b"transfer-encoding", b"content-encoding", b"expect"})


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """How much, how many and how long a connection may ask for; all times are seconds, all sizes bytes."""

    request_line_bytes: int = 8 * 1024
    header_bytes: int = 16 * 1024
    header_count: int = 100
    body_bytes: int = 6_553_500
    chunks: int = 65_536
    header_timeout: float = 10.0
    idle_timeout: float = 60.0
    body_bytes_per_second: float = 1024.0
    body_window: float = 5.0  # the rate must hold over each stretch of this length, the first one included
    write_timeout: float = 30.0
    linger_timeout: float = 2.0  # how long a refused client may take to read why, its own bytes being thrown away
    connections: int = 10_000


@dataclass(slots=True)  # not frozen: a frozen one costs a microsecond more to build, once per request
class HttpRequest:
    """One complete request; `path` is the raw path even where the target was in absolute form."""

    method: str
    target: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    peer: str = ""
    version: str = "1.1"
    keep_alive: bool = True

    def header(self, name: str) -> str | None:
        """The value of a header whatever its case; of repeated ones the last, as TorchServe takes it."""
        wanted = name.lower()
        return next((value for key, value in reversed(self.headers) if key.lower() == wanted), None)


class Refused(Exception):
    """The peer broke the protocol or a limit: nothing it sends after this can be trusted."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Phase(enum.Enum):
    """What a connection waits for; it decides which timeout runs."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"
    BUSY = "busy"
    WRITE = "write"
    CLOSING = "closing"


class RequestReader:
    """Bytes in, requests out, for one connection: the parser and every rule about what is accepted."""

    def __init__(self, limits: HttpLimits, peer: str = "") -> None:
        self.phase = Phase.IDLE
        self.refusal: Refused | None = None
        self.continue_due = False
        self.body_received = 0
        self._limits = limits
        self._peer = peer
        self._parser = HttpRequestParser(self)
        self._ready: deque[HttpRequest] = deque()
        self._unread: bytes | memoryview = b""
        self._message = 0
        self._begin()

    @property
    def has_request(self) -> bool:
        """Whether `take` has a request to give."""
        return bool(self._ready)

    @property
    def is_between_requests(self) -> bool:
        """Whether everything received has been parsed, taken and was whole."""
        return self.phase is Phase.IDLE and not self._ready and not self._unread and self.refusal is None

    def feed(self, data: bytes) -> None:
        """Take received bytes in; parse until a request is complete and hold the rest."""
        if self.refusal is not None:
            return
        if self._unread:
            data = bytes(self._unread) + data
        self._unread = data if len(data) <= PIECE_BYTES else memoryview(data)
        self._parse()

    def take(self) -> HttpRequest | None:
        """Remove and return the next complete request, None if there is none yet."""
        if not self._ready:
            self._parse()
        return self._ready.popleft() if self._ready else None

    def refuse(self, status: int, message: str) -> None:
        """Read no further: the connection found a reason of its own, such as a timeout."""
        self.refusal = Refused(status, message)
        self._unread = b""

    def close(self) -> None:
        """Lets go of what was received: parser and reader know each other, which would keep a body until a full gc."""
        self._begin()
        self._unread = b""
        self._ready.clear()
        del self._parser
        self.refusal = self.refusal or Refused(400, "the connection is closed")

    def _parse(self) -> None:
        while self._unread and not self._ready and self.refusal is None:
            piece = self._unread[: max(PIECE_BYTES, self._content_length - self.body_received)]
            before, message = self.phase, self._message
            try:
                self._parser.feed_data(piece)
                if before is not Phase.IDLE and message == self._message:
                    self._check_overhead(len(piece))
            except HttpParserUpgrade as upgrade:
                piece = piece[: upgrade.args[0]]
                self._ignore_upgrade()
            except (HttpParserError, Refused) as error:
                refused = self._refused(error)
                self.refuse(refused.status, refused.message)
            self._unread = self._unread[len(piece) :]

    def _check_overhead(self, fed: int) -> None:
        """Bound what the parser keeps or skips without telling: an endless header, chunk extensions, leading zeros."""
        self._fed += fed
        if self.phase is Phase.HEAD:
            if self._fed > self._limits.request_line_bytes + self._limits.header_bytes:
                raise Refused(431, f"the head of the request does not end within {self._fed} bytes")
        elif self.phase is Phase.BODY and self._content_length < 0:
            allowed = CHUNK_OVERHEAD_BYTES + BYTES_PER_CHUNK_HEAD * self._chunks
            if self._fed - self.body_received > allowed:
                raise Refused(400, "the chunk extensions are too long; send none")

    def _refused(self, error: Exception) -> Refused:
        if isinstance(error, Refused):
            return error
        if isinstance(error.__context__, Refused):  # raised in a callback, wrapped by the parser
            return error.__context__
        if self._parser.get_method() == b"PRI" or self._parser.get_http_version() not in VERSIONS | {"0.0"}:
            return Refused(505, "this port speaks HTTP/1.1 and HTTP/1.0 only")
        return Refused(400, f"Invalid HTTP message. ({error})")

    def _ignore_upgrade(self) -> None:
        """Go on in HTTP/1.1: httptools stops at a request to upgrade and would lose its body (curl --http2, Java's
        client), so a fresh parser is led past the same head without the Upgrade header."""
        method, version = self._parser.get_method(), self._parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self._target, version)]
        lines += [f"{name}: {value}".encode("latin-1") for name, value in self._headers if name.lower() != "upgrade"]
        self._parser = HttpRequestParser(self)
        self._parser.feed_data(b"\r\n".join(lines) + b"\r\n\r\n")

    # What httptools calls, in this order.

    def on_message_begin(self) -> None:
        self._begin()
        self.phase = Phase.HEAD

    def _begin(self) -> None:
        self._message += 1
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._framing: dict[bytes, str] = {}
        self._header_bytes = 0
        self._body: bytes | bytearray = b""
        self._content_length = -1
        self._chunks = 0
        self._fed = 0
        self._upgrading = False
        self.body_received = 0

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > self._limits.request_line_bytes:
            self._refuse_line()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.phase is Phase.BODY:
            raise Refused(400, "trailers after a chunked body are not accepted")
        value = value.rstrip(b" \t")
        self._headers.append((name.decode("latin-1"), value.decode("latin-1")))
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > self._limits.header_bytes:
            raise Refused(431, f"the headers are longer than {self._limits.header_bytes} bytes")
        if len(self._headers) > self._limits.header_count:
            raise Refused(431, f"there are more than {self._limits.header_count} headers")
        key = name.lower()
        if key in _FRAMING_HEADERS:
            if key in self._framing:
                raise Refused(400, f"the header {key.decode()} is repeated")
            self._framing[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        parser, framing = self._parser, self._framing
        method, version = parser.get_method().decode(), parser.get_http_version()
        if version not in VERSIONS:
            raise Refused(505, "this port speaks HTTP/1.1 and HTTP/1.0 only")
        if len(method) + len(self._target) + len("  HTTP/1.1") > self._limits.request_line_bytes:
            self._refuse_line()
        if method not in METHODS:
            raise Refused(501, f"the method {method} is not implemented; there are {', '.join(sorted(METHODS))}")
        self._check_host(framing.get(b"host"), version)
        if b"transfer-encoding" in framing:
            self._check_chunked(framing[b"transfer-encoding"], version)
        elif b"content-length" in framing:
            self._content_length = int(framing[b"content-length"])  # llhttp let digits through only
            if self._content_length > self._limits.body_bytes:
                self._refuse_body()
        if framing.get(b"content-encoding", "identity").lower() != "identity":
            raise Refused(415, f"Content-Encoding {framing[b'content-encoding']!r} is not accepted; send it plain")
        self._check_expectation(framing.get(b"expect"), version)
        self._method, self._version, self._keep_alive = method, version, parser.should_keep_alive()
        self._upgrading = parser.should_upgrade()
        self._path, self._query = self._split_target()
        self._fed = 0
        self.phase = Phase.BODY

    def _check_host(self, host: str | None, version: str) -> None:
        if host is None and version == "1.1":
            raise Refused(400, "an HTTP/1.1 request needs a Host header")
        if host is not None and not _HOST.fullmatch(host):
            raise Refused(400, f"the Host header {host[:100]!r} is not a host and port")

    def _check_chunked(self, encoding: str, version: str) -> None:
        if encoding.lower() != "chunked":
            raise Refused(400, f"Transfer-Encoding {encoding[:100]!r} is not accepted; 'chunked' is")
        if version != "1.1":
            raise Refused(400, "Transfer-Encoding needs HTTP/1.1; send a Content-Length")

    def _check_expectation(self, expectation: str | None, version: str) -> None:
        if expectation is None or version == "1.0":  # RFC 9110 10.1.1: a 1.0 client's Expect is ignored
            return
        if expectation.lower() != "100-continue":
            raise Refused(417, f"the expectation {expectation[:100]!r} cannot be met; '100-continue' can")
        self.continue_due = self._content_length != 0

    def _split_target(self) -> tuple[str, str]:
        target = self._target.decode("latin-1")
        if "#" in target:
            raise Refused(400, "the request target has a fragment; leave out '#' and what follows")
        path, _, query = target.partition("?")
        if path.startswith("/") or (target == "*" and self._parser.get_method() == b"OPTIONS"):
            return path, query
        absolute = _ABSOLUTE_FORM.match(target)
        if absolute is None:
            raise Refused(400, f"the request target {target[:100]!r} does not begin with '/'")
        host = self._framing.get(b"host")
        if host is not None and host.lower() != absolute[1].lower():
            raise Refused(400, f"the request target and the Host header {host[:100]!r} name different hosts")
        return absolute[2] or "/", query

    def on_body(self, data: bytes) -> None:
        self.body_received += len(data)
        if self.body_received > self._limits.body_bytes:
            self._refuse_body()
        if not self._body:
            self._body = data
            return
        # A bytearray, not a list of pieces: a peer that sends two bytes at a time would cost forty for each.
        if isinstance(self._body, bytes):
            self._body = bytearray(self._body)
        self._body += data

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > self._limits.chunks:
            raise Refused(400, f"the body comes in more than {self._limits.chunks} chunks; send larger ones")

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        body = self._body if isinstance(self._body, bytes) else bytes(self._body)
        self._ready.append(
            HttpRequest(
                self._method,
                self._target.decode("latin-1"),
                self._path,
                self._query,
                tuple(self._headers),
                body,
                self._peer,
                self._version,
                self._keep_alive,
            )
        )
        self._body = b""
        self._content_length = -1
        self.body_received = 0
        self.continue_due = False
        self.phase = Phase.IDLE

    def _refuse_line(self) -> None:
        raise Refused(414, f"the request line is longer than {self._limits.request_line_bytes} bytes")

    def _refuse_body(self) -> None:
        raise Refused(413, f"the body is larger than {self._limits.body_bytes} bytes, the most this server takes")
