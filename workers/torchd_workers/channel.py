"""The worker's end of its socket, and what the daemon has said about each request since it came.

A reader thread owns receiving: it marks Cancel and Credit at once, while user code runs, and queues the rest for the
main thread. Any thread may send. The channel keeps its own references to what it calls: user code may patch anything.
"""

from __future__ import annotations

import logging
import os
from _thread import RLock
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from socket import socket
from threading import Condition, Thread
from time import monotonic
from typing import NoReturn

from torchd_protos.frames import (
    CHUNK_OVERHEAD,
    STREAM_WINDOW,
    Batch,
    Buffer,
    Cancel,
    Credit,
    Failure,
    FrameLimits,
    FrameReader,
    Load,
    Message,
    ProtocolError,
    Reply,
    Settings,
    Unload,
    encode,
)
from torchd_workers.failures import ResponseTooLarge

logger = logging.getLogger(__name__)

PROTOCOL_FAILURE = 70
# The daemon is trusted: it has bounded what clients send, a batch is many times that.
DAEMON_LIMITS = FrameLimits(header=1 << 32, payload=1 << 40)

# What is kept for a slow reader where nobody may wait for him.
HELD_BYTES = 8 * STREAM_WINDOW

_RECEIVE_BYTES = 256 * 1024
_JOIN_BELOW = 64 * 1024

_exit = os._exit
_write_fd = os.write


class RunningRequest:
    """One request between its arrival and its last answer. Times are of this process's monotonic clock."""

    __slots__ = (
        "cancelled",
        "deadline",
        "failure",
        "finished",
        "held",
        "held_bytes",
        "number",
        "on_cancel",
        "unacknowledged",
    )

    def __init__(self, number: int, remaining_ms: int) -> None:
        self.number = number
        self.deadline = monotonic() + remaining_ms / 1000
        self.cancelled = False
        self.finished = False
        # Why no more chunks of its streamed answer are taken; what it ends with.
        self.failure: BaseException | None = None
        self.unacknowledged = 0
        # What waits for the stream's window to open, in order; the last answer may be the last of them.
        self.held: deque[Reply | Failure] = deque()
        self.held_bytes = 0
        # Called by the reader thread.
        self.on_cancel: Callable[[], object] | None = None

    @property
    def over(self) -> bool:
        """Whether nobody takes another chunk of its answer."""
        return self.cancelled or self.finished or self.failure is not None

    def time_remaining(self) -> float:
        """Seconds until its deadline, never negative."""
        return max(0.0, self.deadline - monotonic())


class Channel:
    """Frames in and out of one socket. A channel that breaks ends the process: without the daemon it has no purpose."""

    def __init__(self, connection: socket) -> None:
        self._connection = connection
        self._sendall = connection.sendall
        self._receive_into = connection.recv_into
        self._incoming: SimpleQueue[Message] = SimpleQueue()
        self._outgoing: deque[list[Buffer]] = deque()
        self._sending = RLock()
        self._writing = False
        self._forked = False
        self._running: dict[int, RunningRequest] = {}
        self._changed = Condition()

    def start(self) -> None:
        """Starts the reader thread."""
        os.register_at_fork(after_in_child=self._leave_to_parent)
        Thread(target=self._read, name="torchd-reader", daemon=True).start()

    def receive(self) -> Message:
        """Waits for the next Load, Settings, Batch or Unload."""
        while True:
            try:
                return self._incoming.get()
            except BaseException:  # an alarm that a handler set and forgot rings here, in the main thread
                logger.warning("a signal handler of the model raised between two batches", exc_info=True)

    def receive_now(self) -> Message | None:
        """The next message if it is here."""
        try:
            return self._incoming.get_nowait()
        except Empty:
            return None

    def receive_within(self, seconds: float) -> Message | None:
        """The next message if it comes within so many seconds."""
        try:
            return self._incoming.get(timeout=max(0.0, seconds))
        except Empty:
            return None

    def put(self, message: Message) -> None:
        """Lets the main thread find a message of the leader of its group among the daemon's."""
        self._incoming.put(message)

    def requests(self, batch: Batch) -> list[RunningRequest]:
        """What the reader knows of the batch's requests, in its order."""
        return [self._running[item.request] for item in batch.items]

    def finish(self, requests: list[RunningRequest]) -> None:
        """Forgets requests that are about to get their last answer; nothing may be sent for them afterwards."""
        with self._changed:
            for request in requests:
                request.finished = True
                self._running.pop(request.number, None)

    def send(self, *messages: Message) -> None:
        """Writes the frames in order, together. Returns when they are on the socket."""
        self._outgoing.append([buffer for message in messages for buffer in encode(message)])
        self._flush()

    def _flush(self) -> None:
        with self._sending:
            # Only this thread can be here while it writes: a signal handler or a finalizer that logs. Its frame must
            # not land inside the one being written; the loop below takes it along.
            if self._writing or self._forked:
                return
            self._writing = True
            try:
                while self._outgoing:
                    self._write(self._outgoing.popleft())
            except BaseException as error:  # half a frame may be out: nothing that follows could be understood
                self.leave(f"cannot write to the daemon: {type(error).__name__}: {error}")
            finally:
                self._writing = False

    def send_chunk(self, request: RunningRequest, chunk: Reply) -> None:
        """Sends a chunk as soon as the stream's window is open; drops it when its client goes first.

        It is open while fewer than STREAM_WINDOW bytes are unacknowledged, so a chunk larger than that passes too. The
        only clock is the daemon's: it cancels what is past its deadline, which moves with each chunk.
        """
        with self._changed:
            self._changed.wait_for(lambda: request.over or request.unacknowledged < STREAM_WINDOW)
            if request.over:
                return
            request.unacknowledged += len(chunk.body) + CHUNK_OVERHEAD
            # Under the lock that `finish` takes: no chunk can follow the last answer.
            self._outgoing.append(encode(chunk))
        self._flush()

    def offer_chunk(self, request: RunningRequest, chunk: Reply) -> None:
        """As `send_chunk`, but never waits: what the window has no room for is held, up to HELD_BYTES.

        For loops in which a slow reader must not stop the others. Above the limit the request has failed.
        """
        with self._changed:
            if request.over:
                return
            if request.held or request.unacknowledged >= STREAM_WINDOW:
                request.held_bytes += len(chunk.body) + CHUNK_OVERHEAD
                if request.held_bytes > HELD_BYTES:
                    request.failure = ResponseTooLarge(f"the client reads too slowly: {HELD_BYTES} bytes wait for it")
                    request.held.clear()
                else:
                    request.held.append(chunk)
                return
            request.unacknowledged += len(chunk.body) + CHUNK_OVERHEAD
            self._outgoing.append(encode(chunk))
        self._flush()

    def end(self, request: RunningRequest, answer: Reply | Failure) -> None:
        """Sends a request's last answer, behind what is held for it; nothing may be sent for it afterwards."""
        with self._changed:
            request.finished = True
            if isinstance(answer, Reply) and request.held and not request.cancelled:
                request.held.append(answer)
                return
            self._running.pop(request.number, None)
            self._outgoing.append(encode(answer))
        self._flush()

    def _let_out(self, request: RunningRequest) -> None:
        """Sends what is held for a request as far as its window is open; call it with the lock."""
        while request.held and request.unacknowledged < STREAM_WINDOW:
            answer = request.held.popleft()
            self._outgoing.append(encode(answer))
            if isinstance(answer, Reply) and answer.more:
                size = len(answer.body) + CHUNK_OVERHEAD
                request.unacknowledged += size
                request.held_bytes -= size
            else:
                self._running.pop(request.number, None)

    def leave(self, reason: str, status: int = PROTOCOL_FAILURE) -> NoReturn:
        """Ends the process because it, or the protocol, cannot go on."""
        try:
            _write_fd(2, f"torchd worker {os.getpid()} leaves: {reason}\n".encode())
        finally:
            _exit(status)

    def _write(self, buffers: list[Buffer]) -> None:
        for buffer in join_small(buffers):
            self._sendall(buffer)

    def _read(self) -> None:
        frames = FrameReader(DAEMON_LIMITS)
        view = memoryview(bytearray(_RECEIVE_BYTES))
        try:
            while size := self._receive_into(view):
                for message in frames.feed(view[:size]):
                    self._take(message)
        except ConnectionResetError:
            pass  # the daemon left without reading everything: an end of stream all the same
        except BaseException as error:
            self.leave(f"{type(error).__name__}: {error}")
        _exit(0)

    def _take(self, message: Message) -> None:
        match message:
            case Cancel(request=number):
                with self._changed:
                    if (request := self._running.get(number)) is not None:
                        self._cancel(request)
                        self._changed.notify_all()
                self._flush()
            case Credit(request=number, bytes=size):
                with self._changed:
                    if (request := self._running.get(number)) is not None:
                        request.unacknowledged -= size
                        self._let_out(request)
                        self._changed.notify_all()
                self._flush()
            case Batch():
                for item in message.items:
                    self._running[item.request] = RunningRequest(item.request, item.remaining_ms)
                self._incoming.put(message)
            case Load() | Settings() | Unload():
                self._incoming.put(message)
            case _:
                raise ProtocolError(f"the daemon sent a {type(message).__name__}, which only workers send")

    def _cancel(self, request: RunningRequest) -> None:
        request.cancelled = True
        if request.finished and request.held:  # its last answer waits for a reader who has gone
            self._outgoing.append(encode(request.held[-1]))
            self._running.pop(request.number, None)
        request.held.clear()
        if request.on_cancel is not None:
            request.on_cancel()

    def _leave_to_parent(self) -> None:
        """In a child that user code forked: the socket is the parent's, and its locks may be held for ever."""
        self._forked = True
        self._sending = RLock()
        self._outgoing.clear()
        self._connection.close()


def join_small(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    """The same bytes in few pieces, of which no large one was copied."""
    joined = bytearray()
    for buffer in buffers:
        if len(buffer) < _JOIN_BELOW:
            joined += buffer
            continue
        yield joined
        yield buffer
        joined = bytearray()
    yield joined
