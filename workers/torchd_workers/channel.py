"""The worker's end of its socket, and what the daemon has said about each request since it came.

The thread that waits for something to do reads the socket itself: no other has to be woken for it. While user code
runs for longer than a moment a watching thread reads instead, so that Cancel, Credit and the end of the stream are seen
meanwhile. Any thread may send. The channel keeps its own references to what it calls: user code may patch anything.
"""

from __future__ import annotations

import logging
import os
from _thread import RLock, allocate_lock
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from queue import Empty, SimpleQueue
from select import POLLIN, poll
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

_JOIN_BELOW = 64 * 1024
# Linux takes 1024 in one call.
_MOST_PIECES = 512
# How often the watching thread looks whether user code is still where it was, and how often in vain before it sleeps.
_WATCH_SECONDS = 0.01
_WATCH_TIMES = 20

# Answers are not held back longer, however much is waiting to be done.
_HOLD_SECONDS = 0.0005

# What most requests hold: a deque of its own would be most of what is allocated for one.
_NOTHING: deque[Reply | Failure] = deque(maxlen=0)

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

    def __init__(self, number: int, remaining_ms: int, now: float | None = None) -> None:
        self.number = number
        self.deadline = (monotonic() if now is None else now) + remaining_ms / 1000
        self.cancelled = False
        self.finished = False
        # Why no more chunks of its streamed answer are taken; what it ends with.
        self.failure: BaseException | None = None
        self.unacknowledged = 0
        # What waits for the stream's window to open, in order; the last answer may be the last of them.
        self.held: deque[Reply | Failure] = _NOTHING
        self.held_bytes = 0
        # Called by whichever thread reads.
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

    def __init__(self, connection: socket, page: memoryview) -> None:
        """`page` is the memory in common with the daemon: one number."""
        self._connection = connection
        self._page = page
        self._sendmsg = connection.sendmsg
        self._receive_into = connection.recv_into
        self._frames = FrameReader(DAEMON_LIMITS)
        readable = poll()
        readable.register(connection, POLLIN)
        self._poll = readable.poll
        # Whoever holds it reads the socket.
        self._reading = allocate_lock()
        # Odd while user code runs; it grows, so that the watching thread sees whether it is the same run.
        self._turn = 1
        self._is_waiting = False
        self._watch_sleeps = False
        self._wake_watch = allocate_lock()
        self._incoming: SimpleQueue[Message] = SimpleQueue()
        self._outgoing: deque[list[Buffer]] = deque()
        self._sending = RLock()
        self._held_since = 0.0
        self._writing = False
        self._forked = False
        self._running: dict[int, RunningRequest] = {}
        self._changed = Condition()

    def start(self, has_others: bool = False) -> None:
        """Starts the watching thread; where `put` brings messages of others, one that reads all the time."""
        os.register_at_fork(after_in_child=self._leave_to_parent)
        if has_others:
            self._reading.acquire()
            Thread(target=self._read_on, name="torchd-reader", daemon=True).start()
        else:
            self._wake_watch.acquire()
            Thread(target=self._watch, name="torchd-watch", daemon=True).start()

    def begin(self, step: int) -> None:
        """Says to the daemon, should this process die, that this batch and all before it have begun."""
        self._page[0] = step

    def receive(self) -> Message:
        """Waits for the next Load, Settings, Batch or Unload."""
        self._turn += 1
        while True:
            try:
                message = self._next()
                break
            except BaseException:  # an alarm that a handler set and forgot rings here, in the main thread
                logger.warning("a signal handler of the model raised between two batches", exc_info=True)
        if not isinstance(message, Batch):
            self._flush()
        self._turn += 1
        if self._watch_sleeps:
            self._watch_sleeps = False
            self._wake_watch.release()
        return message

    def receive_now(self) -> Message | None:
        """The next message if it is here."""
        if self._incoming.empty():
            self._look()
        try:
            return self._incoming.get_nowait()
        except Empty:
            return None

    def _look(self) -> None:
        """Reads what has come, unless another thread does."""
        if self._reading.acquire(blocking=False):
            try:
                if self._poll(0):
                    self._read()
            finally:
                self._reading.release()

    def receive_within(self, seconds: float) -> Message | None:
        """The next message if it comes within so many seconds, where a thread of its own reads."""
        try:
            return self._incoming.get(timeout=max(0.0, seconds))
        except Empty:
            return None

    def put(self, message: Message) -> None:
        """Lets the main thread find a message of the leader of its group among the daemon's."""
        self._incoming.put(message)

    def _next(self) -> Message:
        incoming = self._incoming
        if not incoming.empty():  # what was sent since may cancel what it waits for
            self._look()
        else:
            self._flush()
            if not self._reading.acquire(blocking=False):  # the watching thread reads, and hands over
                self._is_waiting = True
                try:
                    return incoming.get()
                finally:
                    self._is_waiting = False
            try:
                while incoming.empty():
                    self._poll()  # here a signal handler may raise; below it would cost the rest of a frame
                    self._read()
            finally:
                self._reading.release()
        return incoming.get_nowait()

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

    def send_soon(self, message: Message) -> None:
        """Writes the frame with those that follow, if more is waiting to be done at once; else as `send`."""
        now = monotonic()
        if not self._outgoing:
            self._held_since = now
        buffers = encode(message)
        # While another thread reads nobody watches what is held back.
        holds = not (self._incoming.empty() or self._reading.locked() or now - self._held_since > _HOLD_SECONDS)
        # What is held is a copy: the handler may write its next answer over the memory that it has returned.
        self._outgoing.append([b"".join(buffers)] if holds else buffers)
        if not holds or self._reading.locked():
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
                    buffers = self._outgoing.popleft()
                    while self._outgoing:
                        buffers += self._outgoing.popleft()
                    self._write(buffers)
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
                    self._hold(request, chunk)
                return
            request.unacknowledged += len(chunk.body) + CHUNK_OVERHEAD
            self._outgoing.append(encode(chunk))
        self._flush()

    def end(self, request: RunningRequest, answer: Reply | Failure) -> None:
        """Sends a request's last answer, behind what is held for it; nothing may be sent for it afterwards."""
        with self._changed:
            request.finished = True
            if isinstance(answer, Reply) and request.held and not request.cancelled:
                self._hold(request, answer)
                return
            self._running.pop(request.number, None)
            self._outgoing.append(encode(answer))
        self._flush()

    @staticmethod
    def _hold(request: RunningRequest, answer: Reply) -> None:
        if request.held is _NOTHING:
            request.held = deque()
        request.held.append(answer)

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
        send_all(self._sendmsg, buffers)

    def _read(self) -> None:
        """Takes what has come, and waits if nothing has; the end of the stream ends the process."""
        try:
            if size := self._receive_into(self._frames.space()):
                for message in self._frames.received(size):
                    self._take(message)
                return
        except ConnectionResetError:
            pass  # the daemon left without reading everything: an end of stream all the same
        except BaseException as error:
            self.leave(f"{type(error).__name__}: {error}")
        _exit(0)

    def _read_on(self) -> None:
        while True:
            self._read()

    def _watch(self) -> None:
        """Looks now and then whether user code is at work for long, and reads while it is; sleeps while nothing is."""
        seen, in_vain = self._turn, 0
        while True:
            self._wake_watch.acquire(timeout=_WATCH_SECONDS)
            turn = self._turn
            if turn != seen:
                seen, in_vain = turn, 0
            elif turn % 2:
                self._read_for_another()
            elif in_vain < _WATCH_TIMES:
                in_vain += 1
            else:
                self._watch_sleeps = True
                # Whoever has begun a turn before that was said does not wake this thread.
                if self._turn == seen:
                    self._wake_watch.acquire()
                self._watch_sleeps, in_vain = False, 0

    def _read_for_another(self) -> None:
        """Reads until the thread that waits for something to do has got it and can read itself."""
        if not self._reading.acquire(blocking=False):  # it does so already
            return
        try:
            self._flush()  # what is held back must not wait for the user code; from here on nothing is
            while not (self._is_waiting and self._incoming.qsize()):
                self._read()
        finally:
            self._reading.release()

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
                now = monotonic()
                for item in message.items:
                    self._running[item.request] = RunningRequest(item.request, item.remaining_ms, now)
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
        self._reading = allocate_lock()
        self._outgoing.clear()
        self._connection.close()


def send_all(sendmsg: Callable[[Sequence[Buffer]], int], buffers: Sequence[Buffer]) -> None:
    """Writes all of them, in few calls; no large one is copied."""
    pieces = deque(_joined(buffers))
    while pieces:
        sent = sendmsg(list(islice(pieces, _MOST_PIECES)))
        while pieces and sent >= len(pieces[0]):
            sent -= len(pieces.popleft())
        if sent:
            pieces[0] = memoryview(pieces[0])[sent:]


def _joined(buffers: Sequence[Buffer]) -> Sequence[Buffer]:
    """The same bytes in few pieces, of which no large one was copied."""
    if sum(map(len, buffers)) < _JOIN_BELOW:
        return [b"".join(buffers)]
    pieces: list[Buffer] = []
    small: list[Buffer] = []
    for buffer in buffers:
        if len(buffer) < _JOIN_BELOW:
            small.append(buffer)
            continue
        pieces += (b"".join(small), buffer) if small else (buffer,)
        small = []
    return [*pieces, b"".join(small)] if small else pieces
