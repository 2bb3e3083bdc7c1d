"""One end of a worker's socket: bytes to messages, and the end told once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvloop
from fakes import in_loop, turns, until

from torchd_protos.frames import Failure, FrameLimits, LoadFailed, Message, ProtocolError, Replies, Reply, encode
from torchd_server import errors
from torchd_server.faults import install
from torchd_server.link import Link, error_of, load_error_of


class RecordingReceiver:
    """Writes down what it hears; refuses Replies."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self.ends: list[ProtocolError | OSError | None] = []

    def received(self, message: Message) -> None:
        if isinstance(message, Replies):
            raise ProtocolError("no")
        self.heard.append(message)

    def link_lost(self, error: ProtocolError | OSError | None) -> None:
        self.ends.append(error)


async def linked() -> tuple[Link, RecordingReceiver, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    receiver = RecordingReceiver()
    return await Link.open(ours, receiver, FrameLimits(payload=1000)), receiver, theirs


def frame(message: Message) -> bytes:
    return b"".join(bytes(buffer) for buffer in encode(message))


@in_loop
async def test_messages_arrive_however_they_are_cut() -> None:
    _, receiver, theirs = await linked()
    data = frame(Reply(1, body=b"one")) + frame(Reply(2, body=b"two"))
    for byte in data:
        theirs.send(bytes([byte]))
        await turns(2)
    await until(lambda: len(receiver.heard) == 2)
    theirs.close()
    await until(lambda: receiver.ends)
    assert receiver.ends == [None]


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize(
    "said", [[Reply(1)], [Reply(1), Reply(2, body=b"x" * 500)], [Reply(1), Replies()], []], ids=len
)
def test_what_a_worker_says_before_its_link_is_open_arrives(
    new_loop: Callable[[], asyncio.AbstractEventLoop], said: list[Message]
) -> None:
    """It may be quicker than a busy daemon: its hello was lost, and it was killed for having loaded without one."""

    async def hear() -> None:
        ours, theirs = socket.socketpair()
        theirs.send(b"".join(map(frame, said)) + frame(Reply(3))[:5])
        receiver = RecordingReceiver()
        link = await Link.open(ours, receiver, FrameLimits(payload=1000))
        is_broken = any(isinstance(message, Replies) for message in said)
        if not is_broken:
            theirs.send(frame(Reply(3))[5:])
        heard = said[:1] if is_broken else [*said, Reply(3)]
        await until(lambda: [bytes(reply.body) for reply in receiver.heard] == [bytes(reply.body) for reply in heard])
        link.send(Reply(4))
        if not is_broken:
            assert theirs.recv(100) == frame(Reply(4))
        theirs.close()
        await until(lambda: receiver.ends)
        assert [type(end) for end in receiver.ends] == [ProtocolError if is_broken else type(None)]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(asyncio.wait_for(hear(), 20.0))


@pytest.mark.parametrize("data", [b"\xff" * 50, frame(Replies()), frame(Reply(1, body=b"x" * 1001))])
@in_loop
async def test_bytes_that_do_not_belong_end_the_link(data: bytes) -> None:
    """W21: what came before them counts, what comes after does not."""
    link, receiver, theirs = await linked()
    theirs.send(frame(Reply(1)) + data + frame(Reply(2)))
    await until(lambda: receiver.ends)
    assert [type(end) for end in receiver.ends] == [ProtocolError]
    assert [message.request for message in receiver.heard if isinstance(message, Reply)] == [1]
    link.send(Reply(3))  # goes nowhere
    theirs.close()


@in_loop
async def test_half_a_frame_at_the_end_is_told() -> None:
    """W12."""
    _, receiver, theirs = await linked()
    theirs.send(frame(Reply(1, body=b"whole"))[:-1])
    theirs.close()
    await until(lambda: receiver.ends)
    assert "in the middle of a frame" in str(receiver.ends[0])


@in_loop
async def test_closing_ends_both_sides() -> None:
    link, receiver, theirs = await linked()
    link.send(Reply(1, body=b"x"))
    link.close()
    await until(lambda: receiver.ends)
    loop = asyncio.get_running_loop()
    assert await loop.sock_recv(theirs, 1000) == frame(Reply(1, body=b"x"))
    assert await loop.sock_recv(theirs, 1000) == b""
    theirs.close()


@in_loop
async def test_the_fault_hook_sees_every_message() -> None:
    link, receiver, theirs = await linked()
    points: list[str] = []
    install(points.append)
    try:
        link.send(Reply(1))
    finally:
        install(None)
    link.send(Reply(2))
    assert points == ["link.send"]
    link.close()
    await until(lambda: receiver.ends)
    theirs.close()


def test_kinds_become_classes_and_an_unknown_one_is_a_failed_handler() -> None:
    assert type(error_of(Failure(1, "OutOfMemory", "no"))) is errors.OutOfMemory
    assert type(error_of(Failure(1, "Cancelled", "no"))) is errors.Cancelled
    assert type(error_of(Failure(1, "DeviceLost", "no"))) is errors.DeviceLost
    assert type(error_of(Failure(1, "ModelNotFound", "no"))) is errors.HandlerFailed
    assert type(error_of(Failure(1, "SystemExit", "no"))) is errors.HandlerFailed
    assert type(load_error_of(LoadFailed("OutOfMemory", "no"))) is errors.LoadOutOfMemory
    assert load_error_of(LoadFailed("whatever", "no", "trace")).traceback == "trace"
