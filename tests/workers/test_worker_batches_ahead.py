"""Batches that stand behind one another in a worker's socket, with the test at the daemon's end of it."""

from __future__ import annotations

import socket

from torchd_protos.frames import Batch, Call, Cancel, Failure, FrameReader, Item, Load, Message, Part, Replies, encode
from torchd_server.daemon import FRAME_SLACK_BYTES
from torchd_workers.batch_loop import TOGETHER_BYTES, BatchLoop
from torchd_workers.channel import Channel, RunningRequest
from torchd_workers.context import Context
from torchd_workers.handler import Handler


def test_batches_that_come_together_are_answered_each_on_its_own(loaded) -> None:
    worker = loaded("naps")
    steps = [worker.send_batch(b"0", first=number) for number in range(1, 6)]
    replies = [worker.until(Replies) for _ in steps]
    assert [list(said.requests) for said in replies] == [[1], [2], [3], [4], [5]]
    assert all(said.end_of_step for said in replies)


def test_what_is_cancelled_behind_a_running_batch_is_not_run(loaded) -> None:
    """K01: it was sent ahead and had not begun."""
    worker = loaded("naps")
    first = worker.send_batch(b"0.5", first=1)
    worker.until_begun(first)
    worker.send_batch(b"0", first=2)
    worker.send(Cancel(2))
    assert list(worker.until(Replies).requests) == [1]
    failure = worker.until(Failure)
    assert (failure.request, failure.kind) == (2, "Cancelled")
    assert worker.until(Replies).end_of_step
    assert bytes(worker.run(b"0", first=3)[0].body) == b"2"


def test_an_answer_does_not_wait_for_a_slow_batch_behind_it(loaded) -> None:
    worker = loaded("naps")
    frames = [
        encode(Batch(number, [Item(number, 60_000, Call(request_id=f"r{number}", parts=[Part("body", body=body)]))]))
        for number, body in ((1, b"0"), (2, b"20"))
    ]
    worker.socket.sendall(b"".join(bytes(buffer) for frame in frames for buffer in frame))
    assert list(worker.until(Replies).requests) == [1]


def test_nor_does_the_answer_of_a_slow_batch(loaded) -> None:
    """The watching thread reads by then, and waits in the socket: it cannot send what is held back."""
    worker = loaded("naps")
    worker.socket.settimeout(10)
    worker.until_begun(worker.send_batch(b"0.3", first=1))
    worker.send_batch(b"20", first=2)
    assert list(worker.until(Replies).requests) == [1]


def test_large_answers_of_a_batch_have_frames_of_their_own(loaded) -> None:
    """The daemon takes a frame of one largest answer and as much as this, not of a batch of them."""
    assert TOGETHER_BYTES <= FRAME_SLACK_BYTES
    worker = loaded("echo")
    bodies = [bytes([number]) * (TOGETHER_BYTES // 2 - 1) for number in range(5)]
    assert [bytes(answer.body) for answer in worker.run(*bodies)] == bodies
    together = [sum(map(len, said.bodies)) for said in worker.seen if isinstance(said, Replies)]
    assert together == [TOGETHER_BYTES - 2]


def test_an_answer_that_is_held_back_stays_what_it_was() -> None:
    """A handler may write all its answers into the same memory."""
    daemons, workers = socket.socketpair()
    with daemons, workers:
        channel = Channel(workers, memoryview(bytearray(8)).cast("Q"))
        channel.put(Batch())  # is waiting
        memory = bytearray(b"first")
        channel.send_soon(Replies([1], [memoryview(memory)], 0, True))
        memory[:] = b"other"
        channel.send(Replies([2], [memoryview(memory)], 0, True))
        said = [*FrameReader().feed(daemons.recv(4096))]
    assert [bytes(body) for replies in said for body in replies.bodies] == [b"first", b"other"]


class GoesNow(RunningRequest):
    """Its cancel is seen from the second look on."""

    looks = 0

    @property
    def cancelled(self) -> bool:
        self.looks += 1
        return self.looks > 1

    @cancelled.setter
    def cancelled(self, value: bool) -> None: ...


class Sent:
    """A channel that knows these requests and writes down what is sent."""

    def __init__(self, *requests: RunningRequest) -> None:
        self.known = list(requests)
        self.messages: list[Message] = []

    def requests(self, batch: Batch) -> list[RunningRequest]:
        return self.known

    def begin(self, step: int) -> None: ...

    def finish(self, requests: list[RunningRequest]) -> None: ...

    def send(self, *messages: Message) -> None:
        self.messages += messages

    send_soon = send


def test_a_cancel_that_comes_while_a_batch_is_taken_costs_nobody_else_his_answer() -> None:
    gone, going, stays = RunningRequest(1, 60_000), GoesNow(2, 60_000), RunningRequest(3, 60_000)
    gone.cancelled = True
    channel = Sent(gone, going, stays)
    handler = Handler(lambda rows, context: [row["body"] for row in rows], Context("m", "", None, 3, None))
    items = [Item(number, 60_000, Call(parts=[Part("body", body=b"%d" % number)])) for number in (1, 2, 3)]
    BatchLoop(channel, handler, Load()).take(Batch(1, items))
    failures = [(said.request, said.kind) for said in channel.messages if isinstance(said, Failure)]
    assert failures == [(1, "Cancelled"), (2, "Cancelled")]
    assert [(*said.requests, *map(bytes, said.bodies)) for said in channel.messages if isinstance(said, Replies)] == [
        (3, b"3")
    ]
