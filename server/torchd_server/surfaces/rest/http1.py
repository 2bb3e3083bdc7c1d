"""HTTP/1.1 over asyncio: one socket and one timer a connection; nothing here knows what is served.

`HttpConnection` owns one socket, its timer and the answer that is being made, one at a time and in order. `HttpServer`
owns the listening socket, the connections and their tasks. What is accepted as a request is http1_reader.py's to say,
how an answer is written http1_answer.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from time import monotonic
from typing import Any, TypeAlias, cast

from torchd_server.surfaces.rest.http1_answer import (
    WHOLE,
    WITHOUT_BODY,
    Answer,
    HttpResponse,
    Pending,
    Whole,
    head_of,
)
from torchd_server.surfaces.rest.http1_reader import HttpLimits, HttpRequest, Phase, RequestHead, RequestReader
from torchd_server.surfaces.rest.tls_listener import TlsListener

__all__ = ["Answer", "Handle", "HttpResponse", "HttpServer", "Pending", "Refuse"]

logger = logging.getLogger(__name__)

# Bytes of an answer handed to the transport before looking whether its reader is slow.
SLICE_BYTES = 256 * 1024
# Up to here one copy is cheaper than a second send.
JOIN_BYTES = 16 * 1024
# What is received at once where nobody has a better place for it.
RECEIVE_BYTES = 64 * 1024

BACKLOG = 1024
# How long handlers may take to end when their connection is gone.
LAST_SECONDS = 1.0
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# To a client that broke the protocol an answer is HTTP/1.1 whatever it spoke.
NO_REQUEST = HttpRequest(RequestHead("", "", "", ""))

Handle: TypeAlias = Callable[[HttpRequest], Answer]
Refuse = Callable[[int, str], HttpResponse]
# Told of every answer when it begins: the request, the status, the seconds that it took.
Answered = Callable[[HttpRequest, int, float], None]


class HttpConnection(asyncio.BufferedProtocol):
    """One client's socket: reads requests, has each answered in order, and keeps the time.

    While an answer is being made the socket is still read, since only so is a client seen to leave; once bytes of a
    further request arrive reading stops until the answer is out (K18). A client that leaves cancels the answer. A
    close() and a shutdown(SHUT_WR) of the client look the same here (a FIN): by default both count as leaving, so
    that no work is done for nobody (K03). With `answer_half_closed` a FIN after a complete request is taken as a
    half-close and still answered (K11), and a closed client is only noticed when writing to it fails.

    Nothing here waits: bytes come, an answer is there, the reader has taken what was written, and each goes on from
    where the connection stands. Only what has to be awaited gets a task: a coroutine's answer, the items of a stream.
    """

    def __init__(self, server: HttpServer, handle: Handle | None = None) -> None:
        self._server = server
        self._handle = handle or server.handle
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        self._phase = Phase.BUSY
        # From a request until its answer is out.
        self._busy = False
        self._advancing = False
        self._ended = False
        self._reading_paused = False
        self._writing_paused = False
        # Whether the buffer that was last given out is the body's own place.
        self._receives_body = False
        self._body_mark = 0
        self._request = NO_REQUEST
        self._started = 0.0
        # What ends the making of the answer; None once it is there.
        self._cancel: Callable[[], object] | None = None
        # What is left to be written of it, None but while it is written; and whether the connection is kept then.
        self._rest: memoryview | None = None
        self._keep = False
        # A stream waits for the reader.
        self._drained: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport
        self._reader: RequestReader

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has the methods but not the base class
        self._reader = RequestReader(self._limits, _peer_name(transport))
        if self._server.is_full:
            message = f"the server has {self._limits.connections} connections, its limit; try again later"
            self._reader.refuse(503, message)
        self._server.adopt(self)
        self._advance()

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._reader.room()
        self._receives_body = room is not None
        return self._server.scratch if room is None else room

    def buffer_updated(self, nbytes: int) -> None:
        if self._phase is Phase.CLOSING:
            return  # lingering: thrown away
        reader = self._reader
        if self._receives_body:
            reader.filled(nbytes)
        else:
            reader.feed(bytes(self._server.scratch[:nbytes]))
        if not self._busy:
            self._advance()
        elif not reader.is_between_requests:
            self._pause_reading()

    def eof_received(self) -> bool:
        if self._server.answer_half_closed and (self._busy or self._reader.has_request):
            self._ended = True
            return True
        if self._busy:
            self._transport.abort()
        self._watch(Phase.CLOSING, self._limits.write_timeout)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._phase = Phase.CLOSING
        if self._timer is not None:
            self._timer.cancel()
        self._server.forget(self)
        self._reader.close()
        self._rest = None
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
        elif self._rest is not None:
            self._phase = Phase.BUSY
            self._write_on()

    # What the server calls.

    def close_if_idle(self) -> None:
        """Close unless a request is being received or answered."""
        if not self._busy and self._reader.is_between_requests and not self._transport.is_closing():
            self._transport.close()

    def abort(self) -> None:
        """Break the connection now; what runs for it is cancelled."""
        self._transport.abort()

    # From a request to its answer.

    @property
    def _is_closing(self) -> bool:
        return self._phase is Phase.CLOSING

    def _advance(self) -> None:
        """Answer what can be answered now, one request after another; then wait for more, or say why none is read."""
        if self._is_closing or self._busy:
            return
        reader = self._reader
        self._advancing = True
        while (request := reader.take()) is not None:
            self._begin(request)
            if self._busy or self._is_closing:
                self._advancing = False
                return
        self._advancing = False
        if reader.refusal is not None:
            self._explain(reader.refusal.status, reader.refusal.message)
        elif self._ended or (self._server.is_draining and reader.is_between_requests):
            self._close()
        else:
            if reader.continue_due:
                reader.continue_due = False
                self._transport.write(CONTINUE)
            if reader.phase is not self._phase:
                self._watch_reader()
            if self._reading_paused:
                self._resume_reading()

    def _begin(self, request: HttpRequest) -> None:
        self._busy = True
        self._phase = Phase.BUSY
        self._request = request
        self._started = monotonic()
        try:
            answer = self._handle(request)
        except Exception as error:
            answer = self._failed(error)
        if isinstance(answer, HttpResponse):
            self._respond(answer)
        elif isinstance(answer, Pending):
            self._cancel = answer.cancel
            answer.when_answered(self._respond)
        else:
            self._cancel = self._server.run(self._await(answer)).cancel

    async def _await(self, answer: Awaitable[HttpResponse]) -> None:
        try:
            response = await answer
        except Exception as error:
            response = self._failed(error)
        self._respond(response)

    def _failed(self, error: Exception) -> HttpResponse:
        logger.error("%s %s failed", self._request.method, self._request.path[:200], exc_info=error)
        return self._refuse(500, "an internal error; the server's log has it")

    def _respond(self, response: HttpResponse) -> None:
        self._cancel = None
        request, body = self._request, response.body
        if self._transport.is_closing():  # connection_lost is on its way, or was here
            if not isinstance(body, WHOLE):
                self._server.run(_closed(body))
            return
        try:
            self._server.answered(request, response.status, monotonic() - self._started)
            head = request.head
            keep = head.keep_alive and not (response.close or self._ended or self._server.is_draining)
            if isinstance(body, WHOLE):
                self._send(head, response, body, keep)
            else:
                self._cancel = self._server.run(self._stream(head, response, body, keep)).cancel
        except Exception:  # whoever gives the answer has others to give: this connection's trouble ends here
            logger.exception("an HTTP connection failed")
            self._transport.abort()

    def _send(self, head: RequestHead, response: HttpResponse, body: Whole, keep: bool) -> None:
        try:
            first = head_of(response, head.version, keep, self._server.headers)
        except ValueError as error:
            self._unsendable(error)
            return
        if head.method == "HEAD" or response.status in WITHOUT_BODY:
            body = b""
        if len(body) <= JOIN_BYTES:
            self._transport.write(first + body)
            if not self._writing_paused:
                self._answered(keep)
                return
            body = b""
        else:
            self._transport.write(first)
        self._rest, self._keep = memoryview(body), keep
        self._write_on()

    def _write_on(self) -> None:
        """Write in slices, as far as the reader takes them: what a slow one costs is bounded, and its time (K08)."""
        while self._rest and not self._writing_paused:
            piece, self._rest = self._rest[:SLICE_BYTES], self._rest[SLICE_BYTES:]
            self._transport.write(piece)
        if self._writing_paused:
            self._watch(Phase.WRITE, self._limits.write_timeout)
        else:
            self._rest = None
            self._answered(self._keep)

    def _answered(self, keep: bool) -> None:
        """The answer is out."""
        self._busy = False
        self._request = NO_REQUEST  # a body is not kept while the client thinks
        if not keep:
            self._close()
        elif self._advancing:
            return  # _advance goes on
        elif self._reader.is_between_requests:
            self._advance()
        else:
            # Whoever has just given the answer is not made to begin with the next request.
            self._loop.call_soon(self._advance)

    def _explain(self, status: int, message: str) -> None:
        """Say why no more is read, and close."""
        self._busy = True
        self._phase = Phase.BUSY
        logger.debug("refused %s: %d %s", _peer_name(self._transport), status, message)
        self._refused(status, message)

    def _unsendable(self, error: ValueError) -> None:
        logger.error("%s %s: the answer cannot be sent: %s", self._request.method, self._request.path[:200], error)
        self._refused(500, str(error))

    def _refused(self, status: int, message: str) -> None:
        response = self._refuse(status, message)
        if not isinstance(response.body, WHOLE):
            raise TypeError("a refusal's body must be bytes, not a stream")
        self._send(NO_REQUEST.head, response, response.body, keep=False)

    def _refuse(self, status: int, message: str) -> HttpResponse:
        response = self._server.refuse(status, message)
        response.close = True
        return response

    # Streams: the only answers with a task while they are written.

    async def _stream(
        self, request: RequestHead, response: HttpResponse, body: AsyncIterator[bytes], keep: bool
    ) -> None:
        chunked = request.version == "1.1"
        keep = keep and chunked  # no chunks in HTTP/1.0: the end of the connection is the end of the body
        try:
            head = head_of(response, request.version, keep, self._server.headers)
            if request.method == "HEAD" or response.status in WITHOUT_BODY:
                await self._write(head)
            elif not await self._write_items(head, body, chunked):
                return
        except ValueError as error:
            self._unsendable(error)
            return
        finally:
            await _closed(body)
        self._cancel = None
        self._answered(keep)

    async def _write_items(self, head: bytes, body: AsyncIterator[bytes], chunked: bool) -> bool:
        """Send the head together with the first item, so that a failure before it still gets an answer."""
        try:
            async for item in body:
                if item:  # an empty chunk would end the body
                    await self._write(head + (b"%x\r\n%b\r\n" % (len(item), item) if chunked else item))
                    head = b""
        except Exception:
            logger.exception("%s %s: the answer broke off", self._request.method, self._request.path[:200])
            if head:
                self._refused(500, "an internal error; the server's log has it")
            else:
                self._break(chunked)
            return False
        await self._write(head + (b"0\r\n\r\n" if chunked else b""))
        return True

    async def _write(self, data: bytes) -> None:
        """Write in slices, each waiting for the reader."""
        view = memoryview(data)
        for start in range(0, len(data), SLICE_BYTES):
            if self._transport.is_closing():
                await self._loop.create_future()  # connection_lost is on its way and cancels
            self._transport.write(view[start : start + SLICE_BYTES])
            if self._writing_paused:
                self._watch(Phase.WRITE, self._limits.write_timeout)
                self._drained = self._loop.create_future()
                await self._drained
                self._drained = None
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
        self._deadline = deadline = self._loop.time() + seconds
        timer = self._timer
        if timer is not None:
            if timer.when() <= deadline:
                return
            timer.cancel()
        self._timer = self._loop.call_at(deadline, self._on_timer)

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
        elif self._phase is Phase.IDLE:
            self.close_if_idle()
        elif self._phase is Phase.HEAD:
            reader.refuse(408, f"the head of the request took longer than {limits.header_timeout:g} s")
            self._advance()
        elif reader.body_received - self._body_mark >= limits.body_bytes_per_second * limits.body_window:
            self._watch_reader()
        else:
            reader.refuse(408, f"the body came slower than {limits.body_bytes_per_second:g} bytes a second")
            self._advance()


class HttpServer:
    """Listens, and owns the connections; `handle` answers requests, `refuse` words the protocol's own errors.

    `headers` stand on every answer behind its own; `answered` is told of those that `handle` gives.
    """

    def __init__(
        self,
        handle: Handle,
        refuse: Refuse,
        limits: HttpLimits | None = None,
        *,
        answer_half_closed: bool = False,
        headers: tuple[tuple[str, str], ...] = (),
        answered: Answered = lambda request, status, seconds: None,
    ) -> None:
        self.handle = handle
        self.refuse = refuse
        self.limits = limits or HttpLimits()
        self.answer_half_closed = answer_half_closed
        self.headers = headers
        self.answered = answered
        self.is_draining = False
        # Every connection receives here: what has come is taken out before anybody else's turn.
        self.scratch = memoryview(bytearray(RECEIVE_BYTES))
        self._listener: asyncio.Server | None = None
        self._tls_listener: TlsListener | None = None
        self._connections: set[HttpConnection] = set()
        self._all_gone = asyncio.Event()
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
        await self._until_gone(grace_seconds)
        for connection in tuple(self._connections):
            connection.abort()
        # Their loss cancels what runs for them; a handler gets a moment to tidy up, but not more.
        await self._until_gone(LAST_SECONDS)
        if self._tasks:
            _, stuck = await asyncio.wait(self._tasks, timeout=LAST_SECONDS)
            if stuck:
                logger.warning("%d requests ignore that their connection was closed", len(stuck))

    async def _until_gone(self, seconds: float) -> None:
        if self._connections:
            self._all_gone.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_gone.wait(), seconds)

    def adopt(self, connection: HttpConnection) -> None:
        """Own a new connection."""
        self._connections.add(connection)

    def forget(self, connection: HttpConnection) -> None:
        """Drop a connection that is gone."""
        self._connections.discard(connection)
        if not self._connections:
            self._all_gone.set()

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Own a task of a connection."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _closed(body: AsyncIterator[bytes]) -> None:
    aclose = getattr(body, "aclose", None)
    if aclose is not None:
        await aclose()


def _peer_name(transport: asyncio.BaseTransport) -> str:
    match transport.get_extra_info("peername"):
        case (host, port, *_):
            return f"{host}:{port}"
        case _:
            return ""
