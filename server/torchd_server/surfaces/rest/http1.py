"""HTTP/1.1 over asyncio: one socket, one task and one timer a connection; nothing here knows what is served.

`HttpConnection` owns one socket, its timer and the one task that answers its requests in order. `HttpServer` owns the
listening socket and the connections. What is accepted as a request is http1_reader.py's to say.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import cast

from torchd_server.surfaces.rest.http1_reader import HttpLimits, HttpRequest, Phase, RequestReader
from torchd_server.surfaces.rest.tls_listener import TlsListener

logger = logging.getLogger(__name__)

# Bytes of an answer handed to the transport before waiting for a slow reader.
SLICE_BYTES = 64 * 1024
# Up to here one copy is cheaper than a second send.
JOIN_BYTES = 16 * 1024
MAX_ANSWER_HEAD_BYTES = 64 * 1024

BACKLOG = 1024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_OUR_HEADERS = frozenset({"connection", "content-length", "transfer-encoding"})
_WITHOUT_BODY = frozenset({204, 304})
_REASONS = {status.value: status.phrase for status in HTTPStatus}
# What a status that nobody has named is called, by its first digit.
_KINDS = {2: "Success", 3: "Redirection", 4: "Client Error", 5: "Server Error"}


@dataclass(slots=True)
class HttpResponse:
    """An answer; a body that is an async iterator is sent as it comes, one chunk an item, and always closed.

    `reason` None means the standard phrase, "" an empty one. Connection, Content-Length and Transfer-Encoding are
    the server's to write.
    """

    status: int
    headers: Iterable[tuple[str, str]] = ()
    body: bytes | AsyncIterator[bytes] = b""
    reason: str | None = None
    close: bool = False


Handle = Callable[[HttpRequest], Awaitable[HttpResponse]]
Refuse = Callable[[int, str], HttpResponse]


class HttpConnection(asyncio.Protocol):
    """One client's socket: reads requests, has each answered in order by one task, and keeps the time.

    While an answer is being made the socket is still read, since only so is a client seen to leave; once bytes of a
    further request arrive reading stops until the answer is out (K18). A client that leaves cancels `handle`. A
    close() and a shutdown(SHUT_WR) of the client look the same here (a FIN): by default both count as leaving, so
    that no work is done for nobody (K03). With `answer_half_closed` a FIN after a complete request is taken as a
    half-close and still answered (K11), and a closed client is only noticed when writing to it fails.
    """

    def __init__(self, server: HttpServer, handle: Handle | None = None) -> None:
        self._server = server
        self._handle = handle or server.handle
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        self._phase = Phase.IDLE
        self._busy = False
        self._ended = False
        self._reading_paused = False
        self._body_mark = 0
        self._wake: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport
        self._reader: RequestReader
        self._task: asyncio.Task[None]

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has the methods but not the base class
        self._reader = RequestReader(self._limits, _peer_name(transport))
        if self._server.is_full:
            message = f"the server has {self._limits.connections} connections, its limit; try again later"
            self._reader.refuse(503, message)
        self._task = self._server.adopt(self, self._serve())

    def data_received(self, data: bytes) -> None:
        if self._phase is Phase.CLOSING:
            return  # lingering: thrown away
        reader = self._reader
        reader.feed(data)
        if self._busy:
            if not reader.is_between_requests:
                self._pause_reading()
        elif reader.has_request or reader.refusal is not None:
            self._wake_task()
        else:
            self._send_continue()
            if reader.phase is not self._phase:
                self._watch_reader()

    def eof_received(self) -> bool:
        if self._server.answer_half_closed and (self._busy or self._reader.has_request):
            self._ended = True
            return True
        if self._busy:
            self._task.cancel()
        self._watch(Phase.CLOSING, self._limits.write_timeout)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._server.forget(self)
        self._task.cancel()
        self._reader.close()

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # What the server calls.

    def close_if_idle(self) -> None:
        """Close unless a request is being received or answered."""
        if not self._busy and self._reader.is_between_requests and not self._transport.is_closing():
            self._transport.close()

    def abort(self) -> None:
        """Break the connection now; what runs for it is cancelled."""
        self._transport.abort()

    # The task.

    async def _serve(self) -> None:
        """Answer the requests in order, then say why no more are read, then close; ends when the connection does."""
        try:
            while (request := await self._next_request()) is not None:
                if not await self._answer(request):
                    break
            else:
                await self._explain_refusal()
            self._close()
            await self._loop.create_future()  # connection_lost cancels: a living task is a living connection
        except Exception:
            logger.exception("an HTTP connection failed")
        finally:
            self._transport.abort()

    async def _next_request(self) -> HttpRequest | None:
        reader = self._reader
        while True:
            request = reader.take()
            if request is not None:
                self._busy = True
                self._phase = Phase.BUSY
                return request
            self._busy = False
            if reader.refusal is not None or self._ended:
                return None
            if self._server.is_draining and reader.is_between_requests:
                return None
            self._send_continue()
            self._watch_reader()
            self._resume_reading()
            self._wake = self._loop.create_future()
            await self._wake

    async def _answer(self, request: HttpRequest) -> bool:
        """Answer one request; False if the connection must close after it."""
        try:
            response = await self._handle(request)
        except Exception:
            logger.exception("%s %s failed", request.method, request.path[:200])
            response = self._refuse(500, "an internal error; the server's log has it")
        try:
            return await self._send(request, response)
        finally:
            aclose = getattr(response.body, "aclose", None)
            if aclose is not None:
                await aclose()

    async def _send(self, request: HttpRequest, response: HttpResponse) -> bool:
        keep = request.keep_alive and not (response.close or self._ended or self._server.is_draining)
        body = response.body
        if request.version == "1.0" and not isinstance(body, bytes):
            keep = False  # no chunks in HTTP/1.0: the end of the connection is the end of the body
        try:
            head = _head(response, request.version, keep)
        except ValueError as error:
            logger.error("%s %s: the answer cannot be sent: %s", request.method, request.path[:200], error)
            return await self._send_refusal(500, str(error))
        if request.method == "HEAD" or response.status in _WITHOUT_BODY:
            await self._write(head)
        elif not isinstance(body, bytes):
            return await self._stream(request, head, body, keep)
        elif len(body) <= JOIN_BYTES:
            await self._write(head + body)
        else:
            await self._write(head)
            await self._write(body)
        return keep

    async def _stream(self, request: HttpRequest, head: bytes, body: AsyncIterator[bytes], keep: bool) -> bool:
        """Send the head together with the first item, so that a failure before it still gets an answer."""
        chunked = request.version == "1.1"
        try:
            async for item in body:
                if item:  # an empty chunk would end the body
                    await self._write(head + (b"%x\r\n%b\r\n" % (len(item), item) if chunked else item))
                    head = b""
        except Exception:
            logger.exception("%s %s: the answer broke off", request.method, request.path[:200])
            if head:
                return await self._send_refusal(500, "an internal error; the server's log has it")
            self._break(chunked)
            return False
        await self._write(head + (b"0\r\n\r\n" if chunked else b""))
        return keep

    async def _explain_refusal(self) -> None:
        refusal = self._reader.refusal
        if refusal is not None:
            self._busy = True
            logger.debug("refused %s: %d %s", _peer_name(self._transport), refusal.status, refusal.message)
            await self._send_refusal(refusal.status, refusal.message)

    async def _send_refusal(self, status: int, message: str) -> bool:
        response = self._refuse(status, message)
        if not isinstance(response.body, bytes):
            raise TypeError("a refusal's body must be bytes, not a stream")
        await self._write(_head(response, "1.1", keep=False) + response.body)
        return False

    def _refuse(self, status: int, message: str) -> HttpResponse:
        response = self._server.refuse(status, message)
        response.close = True
        return response

    async def _write(self, data: bytes) -> None:
        """Write in slices, each waiting for the reader: what a slow one costs is bounded, and so is its time (K08)."""
        if len(data) <= SLICE_BYTES:
            await self._write_slice(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), SLICE_BYTES):
            await self._write_slice(view[start : start + SLICE_BYTES])

    async def _write_slice(self, data: bytes | memoryview) -> None:
        if self._transport.is_closing():
            await self._loop.create_future()  # connection_lost is on its way and cancels
        self._transport.write(data)
        if self._drained is not None:
            self._watch(Phase.WRITE, self._limits.write_timeout)
            await self._drained
            self._phase = Phase.BUSY

    def _break(self, chunked: bool) -> None:
        """Let the client see that the answer is not whole."""
        if not chunked:
            # Without chunks a plain end would look like success: only a reset says otherwise.
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._transport.abort()

    def _close(self) -> None:
        """Close after the last answer; where bytes of the client are still unread, say so and read on for a moment,
        for closing over them would send a reset that can overtake the answer."""
        if self._transport.is_closing():
            return
        if self._reader.is_between_requests and not self._reading_paused:
            self._watch(Phase.CLOSING, self._limits.write_timeout)
            self._transport.close()
            return
        self._watch(Phase.CLOSING, self._limits.linger_timeout)
        if not self._transport.can_write_eof():  # TLS, whose own good-bye reads on until the client has said its
            self._transport.close()
            return
        self._transport.write_eof()
        self._resume_reading()

    def _wake_task(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _send_continue(self) -> None:
        if self._reader.continue_due:
            self._reader.continue_due = False
            self._transport.write(CONTINUE)

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    # The time: one timer, moved lazily.

    def _watch_reader(self) -> None:
        limits, phase = self._limits, self._reader.phase
        self._body_mark = self._reader.body_received
        if phase is Phase.IDLE:
            self._watch(phase, limits.idle_timeout)
        else:
            self._watch(phase, limits.header_timeout if phase is Phase.HEAD else limits.body_window)

    def _watch(self, phase: Phase, seconds: float) -> None:
        """Expect the end of `phase` within `seconds`; a timer that is due earlier is left and looks again then."""
        self._phase = phase
        self._deadline = self._loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= self._deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._phase is Phase.BUSY:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._on_timer)
        else:
            self._expire()

    def _expire(self) -> None:
        limits, reader = self._limits, self._reader
        if self._phase in (Phase.WRITE, Phase.CLOSING):
            self._transport.abort()
        elif reader.has_request:
            return  # it came in the same turn of the loop: the task takes it now
        elif self._phase is Phase.IDLE:
            self.close_if_idle()
        elif self._phase is Phase.HEAD:
            reader.refuse(408, f"the head of the request took longer than {limits.header_timeout:g} s")
            self._wake_task()
        elif reader.body_received - self._body_mark >= limits.body_bytes_per_second * limits.body_window:
            self._watch_reader()
        else:
            reader.refuse(408, f"the body came slower than {limits.body_bytes_per_second:g} bytes a second")
            self._wake_task()


class HttpServer:
    """Listens, and owns the connections; `handle` answers requests, `refuse` words the protocol's own errors."""

    def __init__(
        self, handle: Handle, refuse: Refuse, limits: HttpLimits | None = None, *, answer_half_closed: bool = False
    ) -> None:
        self.handle = handle
        self.refuse = refuse
        self.limits = limits or HttpLimits()
        self.answer_half_closed = answer_half_closed
        self.is_draining = False
        self._listener: asyncio.Server | None = None
        self._tls_listener: TlsListener | None = None
        self._connections: set[HttpConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    @property
    def is_full(self) -> bool:
        """Whether one more connection would pass the limit."""
        return len(self._connections) >= self.limits.connections

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the bound port; a backlog of 1024 lets a thousand clients reconnect at once (K17)."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: HttpConnection(self), host, port, backlog=BACKLOG)
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    async def listen(
        self, listening: socket.socket, context: Callable[[], ssl.SSLContext] | None = None, plain: Handle | None = None
    ) -> None:
        """Listen on a bound socket; with `context` by TLS, and `plain` answers who speaks HTTP without it."""
        listening.setblocking(False)
        if context is None:
            loop = asyncio.get_running_loop()
            create = loop.create_unix_server if listening.family == socket.AF_UNIX else loop.create_server
            self._listener = await create(lambda: HttpConnection(self), sock=listening, backlog=BACKLOG)
            return
        listening.listen(BACKLOG)
        self._tls_listener = TlsListener(
            context, lambda: HttpConnection(self), lambda: HttpConnection(self, plain), self.limits.connections
        )
        self._tls_listener.start(listening)

    async def stop_accepting(self) -> None:
        """Close the listening socket; open connections go on."""
        if self._listener is not None:
            self._listener.close()
        if self._tls_listener is not None:
            await self._tls_listener.close()

    async def drain(self, grace_seconds: float) -> None:
        """Stop in order: no new connections, so that the number only falls; idle ones closed, since nobody waits on
        them; busy ones finish their answer and say `connection: close`; past the grace the rest is broken off."""
        self.is_draining = True
        await self.stop_accepting()
        for connection in tuple(self._connections):
            connection.close_if_idle()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_seconds)
        for connection in tuple(self._connections):
            connection.abort()
        if self._tasks:
            # Cancelled by the loss of their connection; a handler gets a moment to tidy up, but not more.
            _, stuck = await asyncio.wait(self._tasks, timeout=1.0)
            if stuck:
                logger.warning("%d requests ignore that their connection was closed", len(stuck))

    def adopt(self, connection: HttpConnection, serving: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Own a new connection and the task that serves it."""
        self._connections.add(connection)
        task = asyncio.get_running_loop().create_task(serving)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def forget(self, connection: HttpConnection) -> None:
        """Drop a connection that is gone."""
        self._connections.discard(connection)


def _head(response: HttpResponse, version: str, keep: bool) -> bytes:
    """Serialise the head; ValueError if a handler's status, reason or header would break the framing (S40)."""
    parts = [_status_line(response.status, response.reason)]
    for name, value in response.headers:
        if "\r" in value or "\n" in value or "\0" in value:
            raise ValueError(f"the answer's header {name[:100]!r} has a line break or NUL in its value; remove it")
        parts += (_field(name), value, "\r\n")
    if isinstance(response.body, bytes):
        if response.status not in _WITHOUT_BODY:
            parts.append(f"content-length: {len(response.body)}\r\n")
    elif version == "1.1":
        parts.append("transfer-encoding: chunked\r\n")
    parts.append("connection: keep-alive\r\n\r\n" if keep else "connection: close\r\n\r\n")
    head = "".join(parts).encode("latin-1")
    if len(head) > MAX_ANSWER_HEAD_BYTES:
        raise ValueError(f"the answer's headers are {len(head)} bytes; at most {MAX_ANSWER_HEAD_BYTES} can be sent")
    return head


@lru_cache(maxsize=256)
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


def _peer_name(transport: asyncio.BaseTransport) -> str:
    match transport.get_extra_info("peername"):
        case (host, port, *_):
            return f"{host}:{port}"
        case _:
            return ""
