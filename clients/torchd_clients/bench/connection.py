"""The sockets of a load: each connection asks what it is given, and tells its `Asker` how that ended."""

from __future__ import annotations

import errno
import os
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from itertools import cycle
from select import EPOLLIN, EPOLLOUT, epoll
from typing import Protocol

from torchd_clients.bench.h2 import Http2Client, ProtocolError
from torchd_clients.bench.http1 import BadAnswer, Http1Client

_READ = 65_536
_READ_MUCH = 1_048_576
LOST = "connection lost"

Fields = Sequence[tuple[bytes, bytes]]


class Asker(Protocol):
    """Who knows what is to be asked when. `started` is when the time of a call began."""

    def take(self) -> float | None:
        """The start of a call that is to be asked now, if there is one."""

    def ended(self, started: float, reason: str) -> None:
        """A call was answered; `reason` is why not well, empty if it was."""

    def failed(self, started: float, reason: str) -> None:
        """A call will not be answered."""

    def again(self, started: float) -> None:
        """The server says that it never looked at a call: it is asked again, and its time goes on."""

    def is_idle(self, connection: Connection) -> None:
        """The connection has room for one more call, which nobody asks now."""

    def opened(self, connection: Connection) -> None:
        """The connection can be asked, `room` calls at once."""

    def closed(self, connection: Connection, reason: str, was_open: bool) -> None:
        """It is gone, or could not be opened."""


class Connection(ABC):
    """A non-blocking socket; whoever owns it opens it again."""

    def __init__(
        self, asker: Asker, poll: epoll, address: tuple[str, int], requests: Sequence[bytes], room: int
    ) -> None:
        self._asker = asker
        self._poll = poll
        self._address = address
        self._requests = cycle(requests)
        self._socket: socket.socket | None = None
        self._is_open = False
        self._unsent = memoryview(b"")
        self._chunk = _READ
        self.room = room
        self.file = -1

    def open(self) -> None:
        """Begins to connect."""
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self._socket.fileno()
        self._poll.register(self.file, EPOLLOUT)
        code = self._socket.connect_ex(self._address)
        if code not in (0, errno.EINPROGRESS):
            self._close(f"cannot connect: {os.strerror(code)}")

    def close(self) -> None:
        """Ends the connection, and with it the calls on it."""
        self._close(LOST)

    def on_event(self, mask: int) -> None:
        """What epoll said of the socket."""
        if self._socket is None:
            return
        if not self._is_open:
            code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._close(f"cannot connect: {os.strerror(code)}")
                return
            self._is_open = True
            self._poll.modify(self.file, EPOLLIN)
            self._on_open()
            return
        if mask & EPOLLOUT:
            rest, self._unsent = self._unsent, memoryview(b"")
            self._write(rest)
            if not self._unsent and self._socket is not None:
                self._poll.modify(self.file, EPOLLIN)
        if mask & ~EPOLLOUT:
            self._read()

    @abstractmethod
    def ask(self, started: float) -> None:
        """Asks the next request; what is written may wait for `flush`."""

    @abstractmethod
    def flush(self) -> None:
        """Writes what `ask` has left to be written."""

    @abstractmethod
    def expire(self, before: float, reason: str) -> None:
        """Gives up the calls that started before that time."""

    @abstractmethod
    def _on_open(self) -> None: ...

    @abstractmethod
    def _received(self, data: bytes) -> None: ...

    @abstractmethod
    def _lose(self, reason: str) -> None: ...

    def _read(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(self._chunk)
        except BlockingIOError:
            return
        except OSError:
            self._close(LOST)
            return
        if not data:
            self._close(LOST)
            return
        if len(data) == self._chunk:
            self._chunk = _READ_MUCH
        try:
            self._received(data)
        except (BadAnswer, ProtocolError) as error:
            self._close(str(error))

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        if self._socket is None:
            return
        if self._unsent:
            self._unsent = memoryview(bytes(self._unsent) + data)
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(LOST)
            return
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            self._poll.modify(self.file, EPOLLIN | EPOLLOUT)

    def _close(self, reason: str) -> None:
        if self._socket is None:
            return
        was_open, self._is_open = self._is_open, False
        self._poll.unregister(self.file)
        self._socket.close()
        self._socket = None
        self._unsent = memoryview(b"")
        self._asker.closed(self, reason, was_open)
        self._lose(reason)
        self.file = -1


class RestConnection(Connection):
    """One call at a time over HTTP/1.1, the connection kept."""

    def __init__(self, asker: Asker, poll: epoll, address: tuple[str, int], requests: Sequence[bytes], expect: bytes):
        super().__init__(asker, poll, address, requests, 1)
        self._expect = expect
        self._http = Http1Client(expect)
        self._started: float | None = None

    def ask(self, started: float) -> None:
        """Asks the next request."""
        self._started = started
        self._write(next(self._requests))

    def flush(self) -> None:
        """Nothing is left: `ask` writes at once."""

    def expire(self, before: float, reason: str) -> None:
        """Gives up the call if it started before that time; the connection goes with it."""
        if self._started is not None and self._started < before:
            self._close(reason)

    def _on_open(self) -> None:
        self._http = Http1Client(self._expect)
        self._asker.opened(self)

    def _received(self, data: bytes) -> None:
        if self._started is None:
            raise BadAnswer("an answer that nobody asked for")
        reason = self._http.feed(data)
        if reason is None:
            return
        started, self._started = self._started, None
        self._asker.ended(started, reason)
        if self._http.closes:
            self._close(LOST)
        elif (following := self._asker.take()) is None:
            self._asker.is_idle(self)
        else:
            self.ask(following)

    def _lose(self, reason: str) -> None:
        started, self._started = self._started, None
        if started is not None:
            self._asker.failed(started, reason)


class GrpcConnection(Connection):
    """Up to `room` calls at once over one HTTP/2 connection."""

    def __init__(
        self,
        asker: Asker,
        poll: epoll,
        address: tuple[str, int],
        requests: Sequence[bytes],
        expect: bytes,
        fields: Fields,
        room: int,
    ):
        super().__init__(asker, poll, address, requests, room)
        self._expect = expect
        self._fields = fields
        self._http = Http2Client(fields, expect)
        self._is_ready = False
        # Those over the server's limit on streams.
        self._waiting: deque[float] = deque()

    def ask(self, started: float) -> None:
        """Asks the next request; it is written by `flush`."""
        if self._http.calls < self._http.max_streams:
            self._http.start(next(self._requests), started)
        else:
            self._waiting.append(started)

    def flush(self) -> None:
        """Writes what was asked, all at once."""
        if self._http.outgoing:
            data = self._http.outgoing
            self._http.outgoing = bytearray()
            self._write(data)

    def expire(self, before: float, reason: str) -> None:
        """Gives up the calls that started before that time."""
        overdue = self._http.overdue(before)
        for number, started in overdue:
            self._http.cancel(number)
            self._asker.failed(started, reason)
        late = [started for started in self._waiting if started < before]
        for started in late:
            self._waiting.remove(started)
            self._asker.failed(started, reason)
        self._go_on(len(overdue) + len(late))

    def _on_open(self) -> None:
        self._http = Http2Client(self._fields, self._expect)
        self._is_ready = False
        self.flush()

    def _received(self, data: bytes) -> None:
        ended = self._http.feed(data)
        for one in ended:
            if one.unseen:
                self._asker.again(one.started)
            else:
                self._asker.ended(one.started, one.reason)
        if not self._is_ready and self._http.is_ready:
            self._is_ready = True
            self._asker.opened(self)
        self._go_on(len(ended))

    def _go_on(self, rooms: int) -> None:
        if self._http.is_leaving:
            if not self._http.calls:
                self._close(LOST)
            return
        while self._waiting and self._http.calls < self._http.max_streams:
            self._http.start(next(self._requests), self._waiting.popleft())
        for _ in range(rooms):
            if (following := self._asker.take()) is None:
                self._asker.is_idle(self)
            else:
                self.ask(following)
        self.flush()

    def _lose(self, reason: str) -> None:
        lost = [*self._http.lose(), *self._waiting]
        self._waiting.clear()
        for started in lost:
            self._asker.failed(started, reason)
