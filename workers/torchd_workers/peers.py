"""A socket to another rank of the same worker. It carries the frames of worker.proto and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from socket import socket

from torchd_protos.frames import FrameReader, Message, encode
from torchd_workers.channel import DAEMON_LIMITS, join_small

_RECEIVE_BYTES = 256 * 1024


class Peer:
    """One other rank. One thread at a time sends, one thread reads."""

    def __init__(self, rank: int, connection: socket) -> None:
        self.rank = rank
        self._connection = connection
        # User code may patch anything.
        self._sendall = connection.sendall
        self._receive_into = connection.recv_into

    def send(self, message: Message) -> None:
        """Writes one frame; returns when it is on the socket."""
        for buffer in join_small(encode(message)):
            self._sendall(buffer)

    def messages(self) -> Iterator[Message]:
        """What the rank says, until its end of the socket is closed."""
        frames = FrameReader(DAEMON_LIMITS)
        view = memoryview(bytearray(_RECEIVE_BYTES))
        try:
            while size := self._receive_into(view):
                yield from frames.feed(view[:size])
        except ConnectionResetError:
            return  # it died without reading everything

    def close(self) -> None:
        """Closes this process's end."""
        self._connection.close()
