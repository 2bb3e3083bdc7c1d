"""A socket to another rank of the same worker. It carries the frames of worker.proto and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from socket import socket

from torchd_protos.frames import FrameReader, Message, encode
from torchd_workers.channel import DAEMON_LIMITS, send_all


class Peer:
    """One other rank. One thread at a time sends, one thread reads."""

    def __init__(self, rank: int, connection: socket) -> None:
        self.rank = rank
        self._connection = connection
        # User code may patch anything.
        self._sendmsg = connection.sendmsg
        self._receive_into = connection.recv_into

    def send(self, message: Message) -> None:
        """Writes one frame; returns when it is on the socket."""
        send_all(self._sendmsg, encode(message))

    def messages(self) -> Iterator[Message]:
        """What the rank says, until its end of the socket is closed."""
        frames = FrameReader(DAEMON_LIMITS)
        try:
            while size := self._receive_into(frames.space()):
                yield from frames.received(size)
        except ConnectionResetError:
            return  # it died without reading everything

    def close(self) -> None:
        """Closes this process's end."""
        self._connection.close()
