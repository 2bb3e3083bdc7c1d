"""A listening socket for https: it looks at a connection's first byte before it says a word.

A client that begins with TLS gets a handshake with the certificate of that moment; one that does not is a plain HTTP
client, which is told so in its own language instead of with an alert it cannot read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable

logger = logging.getLogger(__name__)
HANDSHAKE_SECONDS = 10.0
# What TLS begins with: the type of a handshake record.
HANDSHAKE_RECORD = b"\x16"
# Accepting failed for want of descriptors: time for others to leave.
NO_ROOM_SECONDS = 0.1


class TlsListener:
    """Accepts until closed; one task for each connection that has not said yet what it is.

    `secure` and `plain` make the protocol of a connection of either kind; no more than `pending` may be undecided.
    """

    def __init__(
        self,
        context: Callable[[], ssl.SSLContext],
        secure: Callable[[], asyncio.BaseProtocol],
        plain: Callable[[], asyncio.BaseProtocol],
        pending: int,
    ) -> None:
        self._context = context
        self._secure = secure
        self._plain = plain
        self._pending = pending
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._undecided: set[asyncio.Task[None]] = set()

    def start(self, listening: socket.socket) -> None:
        """Accepts from now on."""
        self._socket = listening
        self._accepting = asyncio.get_running_loop().create_task(self._accept(listening))

    async def close(self) -> None:
        """Accepts no more; who has not finished a handshake is hung up on."""
        tasks = [*self._undecided, *([self._accepting] if self._accepting is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:
                logger.warning("no connection can be accepted: %s", error)
                await asyncio.sleep(NO_ROOM_SECONDS)
                continue
            if len(self._undecided) >= self._pending:
                connection.close()
                continue
            task = loop.create_task(self._decide(connection))
            self._undecided.add(task)
            task.add_done_callback(self._undecided.discard)

    async def _decide(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        taken = False
        try:
            connection.setblocking(False)
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                first = await _first_byte(connection)
                if not first:
                    return
                if first != HANDSHAKE_RECORD:
                    taken = True
                    await loop.connect_accepted_socket(self._plain, connection)
                    return
                taken = True
                await loop.connect_accepted_socket(
                    self._secure,
                    connection,
                    ssl=self._context(),
                    ssl_handshake_timeout=HANDSHAKE_SECONDS,
                    ssl_shutdown_timeout=HANDSHAKE_SECONDS,
                )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is one of them: a handshake that came to nothing
            logger.debug("a TLS connection was not made: %s", error)
        finally:
            if not taken:
                connection.close()


async def _first_byte(connection: socket.socket) -> bytes:
    """The first byte, left where it is; empty if the client has gone."""
    loop = asyncio.get_running_loop()
    while True:
        with contextlib.suppress(BlockingIOError, InterruptedError):
            return connection.recv(1, socket.MSG_PEEK)
        readable = loop.create_future()
        loop.add_reader(connection, _set, readable)
        try:
            await readable
        finally:
            loop.remove_reader(connection)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
