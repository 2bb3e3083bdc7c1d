"""HTTP/1.1 without a socket: received bytes become requests, or the reason why they are refused.

httptools parses; what its strict mode lets through is refused here. Whatever breaks the protocol ends the connection,
since the next byte of such a peer could be anything (request smuggling).
"""

from __future__ import annotations

import enum
import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"})
VERSIONS = frozenset({"1.0", "1.1"})

# Bytes handed to the parser at once while no body of known length is being read: bounds how many pipelined requests
# are parsed ahead, and by how much a head that has not ended can pass its limit.
PIECE_BYTES = 8 * 1024
# What a chunked body may spend beyond its data: chunk sizes, line ends, and a few small extensions.
CHUNK_OVERHEAD_BYTES = 16 * 1024
BYTES_PER_CHUNK_HEAD = 32

END_OF_HEAD = b"\r\n\r\n"
# The place of a body is made so many times as large as what has come of it.
GROWTH = 32

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


Body = bytes | bytearray


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What stands before the body, checked and taken apart; `path` is the raw path even of a target in absolute form.

    Requests whose heads are the same bytes share one, and `notes` keeps what their handlers made of it, under keys of
    their own. It lives no longer than its connection, and may hold nothing that depends on more than the head.
    """

    method: str
    target: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...] = ()
    version: str = "1.1"
    keep_alive: bool = True
    content_length: int = 0
    notes: dict[object, Any] = field(default_factory=dict, compare=False, repr=False)
    _by_name: dict[str, str] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Finds its headers by name."""
        object.__setattr__(self, "_by_name", {name.lower(): value for name, value in self.headers})

    def header(self, name: str) -> str | None:
        """The value of a header whatever its case; of repeated ones the last, as TorchServe takes it."""
        return self._by_name.get(name.lower())


@dataclass(slots=True)  # not frozen: a frozen one costs a microsecond more to build, once per request
class HttpRequest:
    """One complete request."""

    head: RequestHead
    body: Body = b""
    peer: str = ""

    @property
    def method(self) -> str:
        """`GET` and its like."""
        return self.head.method

    @property
    def target(self) -> str:
        """What the request line names, as it was sent."""
        return self.head.target

    @property
    def path(self) -> str:
        """The raw path, without the query."""
        return self.head.path

    @property
    def query(self) -> str:
        """What stands behind the `?`."""
        return self.head.query

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Every header as it was sent, in order."""
        return self.head.headers

    def header(self, name: str) -> str | None:
        """The value of a header whatever its case; of repeated ones the last, as TorchServe takes it."""
        return self.head.header(name)


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
    """Bytes in, requests out, for one connection: the parser and every rule about what is accepted.

    A head of the same bytes as the one before is not parsed again: equal bytes make equal requests. The parser sees
    heads and chunked bodies; a body of known length is put together here, in one piece of memory.
    """

    def __init__(self, limits: HttpLimits, peer: str = "") -> None:
        self.phase = Phase.IDLE
        self.refusal: Refused | None = None
        self.continue_due = False
        self.body_received = 0
        self._limits = limits
        self._peer = peer
        self._parser = HttpRequestParser(self)
        self._ready: deque[HttpRequest] = deque()
        # What has been received and is not parsed: all of `_unread` from `_at` on.
        self._unread = b""
        self._at = 0
        self._message = 0
        # The last head that was plain enough to be remembered, and its bytes, empty where there is none.
        self._known = b""
        self._known_head = RequestHead("", "", "", "")
        self._head = self._known_head
        self._body: Body = b""
        # Whether the body of `_head` is being put together here.
        self._collecting = False
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
            data = self._unread[self._at :] + data
        elif self._known and self.phase is Phase.IDLE and data.startswith(self._known):
            # Nearly every request of nearly every client: a known head and its whole body at once.
            size = len(self._known)
            if len(data) == size + self._known_head.content_length:
                self._ready.append(HttpRequest(self._known_head, data[size:], self._peer))
                return
        self._unread, self._at = data, 0
        self._parse()

    def take(self) -> HttpRequest | None:
        """Remove and return the next complete request, None if there is none yet."""
        if not self._ready:
            if not self._unread:
                return None
            self._parse()
        return self._ready.popleft() if self._ready else None

    def refuse(self, status: int, message: str) -> None:
        """Read no further: the connection found a reason of its own, such as a timeout."""
        self.refusal = Refused(status, message)
        self._unread, self._at = b"", 0

    def close(self) -> None:
        """Lets go of what was received: parser and reader know each other, which would keep a body until a full gc."""
        self._begin()
        self._unread, self._at = b"", 0
        self._ready.clear()
        del self._parser
        self.refusal = self.refusal or Refused(400, "the connection is closed")

    # A body of known length, received where it stays.

    def room(self) -> memoryview | None:
        """Where more of a large body may be received, to be told to `filled`; None where bytes must be fed."""
        if not self._collecting or not self.body_received:
            return None
        self._reserve(self.body_received + 1)
        return memoryview(self._body)[self.body_received :]

    def filled(self, size: int) -> None:
        """So many bytes have been received into `room`."""
        self.body_received += size
        if self.body_received == self._head.content_length:
            self._complete(self._body)

    def _reserve(self, size: int) -> None:
        """Makes the body's place at least this large; what a peer promises costs nothing before it sends."""
        if size > len(self._body):
            larger = bytearray(min(self._head.content_length, GROWTH * size))
            larger[: self.body_received] = memoryview(self._body)[: self.body_received]
            self._body = larger

    def _collect(self) -> None:
        head, start = self._head, self._at
        end = start + head.content_length - self.body_received
        self._at = min(end, len(self._unread))
        if self.body_received == 0 and end <= len(self._unread):
            self._complete(self._unread[start:end])
            return
        size = self._at - start
        self._reserve(self.body_received + size)
        memoryview(self._body)[self.body_received : self.body_received + size] = self._unread[start : self._at]
        self.filled(size)

    def _complete(self, body: Body) -> None:
        self._ready.append(HttpRequest(self._head, body, self._peer))
        self._body = b""
        self._collecting = False
        self.body_received = 0
        self.continue_due = False
        self.phase = Phase.IDLE

    # Heads, known and new, and chunked bodies.

    def _parse(self) -> None:
        while not self._ready and self.refusal is None and self._at < len(self._unread):
            if self._collecting:
                self._collect()
            elif self.phase is Phase.IDLE and self._known and self._unread.startswith(self._known, self._at):
                self._at += len(self._known)
                self._begin_body(self._known_head)
            else:
                self._parse_piece()
        if self._at >= len(self._unread):
            self._unread, self._at = b"", 0

    def _begin_body(self, head: RequestHead) -> None:
        """Its head is complete, and the parser has nothing to do with its body."""
        self._head = head
        self._collecting = True
        self.phase = Phase.BODY
        if not head.content_length:
            self._complete(b"")

    def _parse_piece(self) -> None:
        start, end = self._at, self._at + PIECE_BYTES
        before, message = self.phase, self._message
        if before is Phase.IDLE:
            # Where the head ends the body may begin, which is not for the parser.
            found = self._unread.find(END_OF_HEAD, start, end)
            end = found + len(END_OF_HEAD) if found >= 0 else end
        elif before is Phase.BODY and self._content_length > 0:
            end = max(end, start + self._content_length - self.body_received)
        piece = self._unread[start:end]
        self._at = start + len(piece)
        try:
            self._parser.feed_data(piece)
            if before is not Phase.IDLE and message == self._message:
                self._check_overhead(len(piece))
        except HttpParserUpgrade as upgrade:
            self._at = start + upgrade.args[0]
            self._ignore_upgrade()
        except (HttpParserError, Refused) as error:
            refused = self._refused(error)
            self.refuse(refused.status, refused.message)
            return
        if before is Phase.IDLE and self._message == message + 1 and piece.endswith(END_OF_HEAD):
            self._know(piece)

    def _know(self, piece: bytes) -> None:
        """One head and nothing else was parsed: it is remembered, and its body is collected here, if it is plain.

        Plain is: of a known length, with nothing to be said before the body, and with requests to follow.
        """
        head = self._head
        if self._is_plain and not self.body_received:
            self._known, self._known_head = piece, head
            if self.phase is Phase.BODY:
                self._parser = HttpRequestParser(self)  # the old one waits for the body
                self._begin_body(head)

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
        self._body = b""
        self._is_plain = False
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
        self._upgrading = parser.should_upgrade()
        path, query = self._split_target()
        target, headers = self._target.decode("latin-1"), tuple(self._headers)
        keep_alive, length = parser.should_keep_alive(), max(0, self._content_length)
        self._head = RequestHead(method, target, path, query, headers, version, keep_alive, length)
        is_special = self._upgrading or b"transfer-encoding" in framing or b"expect" in framing
        self._is_plain = keep_alive and not is_special
        if not keep_alive:
            self._known = b""  # what follows is for the parser, which refuses it
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
        self._content_length = -1
        self._complete(self._body)

    def _refuse_line(self) -> None:
        raise Refused(414, f"the request line is longer than {self._limits.request_line_bytes} bytes")

    def _refuse_body(self) -> None:
        raise Refused(413, f"the body is larger than {self._limits.body_bytes} bytes, the most this server takes")
