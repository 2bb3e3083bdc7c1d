"""The daemon's end of one worker's socket: frames in, messages out; failures become the classes of errors.py."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from typing import Protocol

from torchd_protos.frames import Buffer, Failure, FrameLimits, FrameReader, LoadFailed, Message, ProtocolError, encode
from torchd_server import errors
from torchd_server.faults import fault


class Receiver(Protocol):
    """Who hears what the worker says."""

    def received(self, message: Message) -> None:
        """One message; raises ProtocolError if it has no business here."""

    def link_lost(self, error: ProtocolError | OSError | None) -> None:
        """Nothing more will come; called once. `error` is None at a clean end of stream."""


class Link(asyncio.BufferedProtocol):
    """Speaks frames over one connected socket.

    It is written through a second descriptor: a write that fails because the worker has died closes its transport, and
    what the worker said last must still be read from the other. What the socket takes at once is written to it at once;
    the transport gets the rest.
    """

    def __init__(
        self, receiver: Receiver, limits: FrameLimits, socket: socket.socket, writer: asyncio.WriteTransport
    ) -> None:
        """`socket` is the writer's."""
        self._receiver = receiver
        self._reader = FrameReader(limits)
        self._socket = socket
        self._writer = writer
        self._transport: asyncio.BaseTransport | None = None
        self._broken: ProtocolError | None = None

    @classmethod
    async def open(cls, sock: socket.socket, receiver: Receiver, limits: FrameLimits) -> Link:
        """Takes over a connected Unix socket."""
        loop = asyncio.get_running_loop()
        early = _Early()
        second = sock.dup()
        second.setblocking(False)
        writer, _ = await loop.create_unix_connection(lambda: early, sock=second)
        if not writer.is_closing():
            writer.pause_reading()
        link = cls(receiver, limits, second, writer)
        link._hear(link._reader.feed(early.data))
        await loop.create_unix_connection(lambda: link, sock=sock)
        return link

    def send(self, message: Message) -> None:
        """Writes one message; after the end of the link it goes nowhere, and `link_lost` has been told."""
        fault("link.send")
        if self._writer.is_closing():
            return
        buffers: Sequence[Buffer] = encode(message)
        if not self._writer.get_write_buffer_size():
            buffers = self._unsent(buffers)
        if buffers:
            self._writer.writelines(buffers)

    def _unsent(self, buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        """What the socket does not take now. Where it refuses, the transport finds out why."""
        try:
            sent = self._socket.sendmsg(buffers)
        except OSError:
            return buffers
        left: list[Buffer] = []
        for buffer in buffers:
            if sent < len(buffer):
                left.append(memoryview(buffer)[sent:] if sent else buffer)
            sent = max(0, sent - len(buffer))
        return left

    def close(self) -> None:
        """Ends the link."""
        self._writer.abort()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the socket is ours."""
        self._transport = transport
        if self._broken is not None:
            transport.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        """asyncio: where bytes are to go."""
        return self._reader.space()

    def buffer_updated(self, nbytes: int) -> None:
        """asyncio: bytes came."""
        self._hear(self._reader.received(nbytes))

    def _hear(self, messages: Iterable[Message]) -> None:
        try:
            for message in messages:
                self._receiver.received(message)
        except ProtocolError as error:
            self._broken = error
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: it is over."""
        self._writer.abort()
        if self._broken is None and self._reader.buffered:
            self._broken = ProtocolError("the stream ended in the middle of a frame")
        self._receiver.link_lost(self._broken or (exc if isinstance(exc, OSError) else None))


class _Early(asyncio.Protocol):
    """Takes what is read at the writer's descriptor before that can be stopped.

    A transport reads as soon as it is made, and the worker may have said hello by then.
    """

    def __init__(self) -> None:
        self.data = bytearray()

    def data_received(self, data: bytes) -> None:
        self.data += data


_FAILURES: dict[str, type[errors.HandlerFailed]] = {
    cls.__name__: cls
    for cls in (
        errors.HandlerFailed,
        errors.HandlerExit,
        errors.BadOutput,
        errors.NoList,
        errors.WrongCount,
        errors.Unsendable,
        errors.ResponseTooLarge,
        errors.PredictionFailed,
    )
}


def error_of(failure: Failure) -> errors.TorchdError:
    """The error a worker's Failure stands for."""
    if failure.kind == "OutOfMemory":
        return errors.OutOfMemory(failure.message, failure.traceback)
    if failure.kind == "DeviceLost":
        return errors.DeviceLost(failure.message, failure.traceback)
    if failure.kind == "Cancelled":
        return errors.Cancelled(failure.message)
    return _FAILURES.get(failure.kind, errors.HandlerFailed)(failure.message, failure.traceback, failure.status or None)


def load_error_of(failure: LoadFailed) -> errors.LoadFailed:
    """The error a worker's LoadFailed stands for."""
    cls = errors.LoadOutOfMemory if failure.kind == "OutOfMemory" else errors.LoadFailed
    return cls(failure.message, failure.traceback)
