"""One request and its whole life. It has one owner at a time, and `finish` is the only way out.

    RECEIVED --put--> QUEUED --sent--> SENT --finish--> DONE
        \\______________ finish _______________________^   (refused, cancelled, expired: from any state)

Whoever holds the request when it is finished from outside is told by `release`: the queue forgets it, the worker sends
Cancel. `finish` is idempotent: the first outcome stands, so a request is answered exactly once.

Its deadline is watched by whoever made it (deadlines.py). Its answer is either awaited (`answer`, `replies`) or told
of by a plain call (`when_answered`), for whom a task for each request would cost more than the request.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from torchd_protos.frames import CHUNK_OVERHEAD, Call, Reply
from torchd_server.clock import Clock
from torchd_server.errors import Cancelled, DeadlineExceeded, DeadlineInQueue, ResponseTooLarge, TorchdError


class State(enum.Enum):
    """Where a request is in its life."""

    RECEIVED = "received"
    QUEUED = "queued"
    SENT = "sent"
    DONE = "done"


class Owner(Protocol):
    """Who holds a request: a queue or a worker."""

    def release(self, request: Request) -> None:
        """The request is done: forget it, and stop the work on it."""

    def credit(self, request: Request, size: int) -> None:
        """The client has taken `size` bytes of a streamed answer."""


class Request:
    """A call on its way to an answer. `number` is its identity inside; the client's request id is never a key."""

    __slots__ = (
        "_clock",
        "_on_done",
        "_owner",
        "_replies",
        "_tell",
        "call",
        "client_deadline",
        "deadline",
        "error",
        "has_answer",
        "number",
        "received_at",
        "replied_at",
        "response_timeout",
        "sent_at",
        "sent_times",
        "state",
        "step",
    )

    def __init__(
        self,
        call: Call,
        number: int,
        response_timeout: float,
        clock: Clock,
        on_done: Callable[[Request], None],
        first_timeout: float = math.inf,
    ) -> None:
        self.call = call
        self.number = number
        self.response_timeout = response_timeout
        self.state = State.RECEIVED
        self.error: TorchdError | None = None
        self.received_at = clock.time()
        self.sent_times = 0
        self.sent_at = 0.0
        self.step = 0
        self.has_answer = False
        self.replied_at = 0.0
        # The client's own deadline counts for the whole answer; the model's timeout for each chunk of a streamed one,
        # `first_timeout` for the first.
        self.client_deadline = self.received_at + call.timeout_ms / 1000 if call.timeout_ms else math.inf
        self.deadline = min(self.client_deadline, self.received_at + min(response_timeout, first_timeout))
        self._clock = clock
        self._on_done = on_done
        self._owner: Owner | None = None
        self._replies: deque[Reply] = deque()
        self._tell: Callable[[Request], None] | None = None

    def queued(self, owner: Owner) -> None:
        """It waits, held by `owner`."""
        self._move(State.QUEUED, owner)

    def sent(self, owner: Owner, now: float = 0.0, step: int = 0) -> None:
        """It is with a worker, held by `owner`, from `now` on, in the worker's batch number `step`."""
        self.sent_times += 1
        self.sent_at = now
        self.step = step
        self._move(State.SENT, owner)

    def _move(self, state: State, owner: Owner) -> None:
        if self.state is State.DONE:
            raise RuntimeError(f"request {self.number} is done and cannot become {state.value}")
        self.state = state
        self._owner = owner

    def reply(self, reply: Reply) -> None:
        """One more piece of the answer; the last one (`more` false) finishes the request."""
        if self.state is State.DONE:
            return
        if (now := self._clock.time()) >= self.deadline:  # whoever watches the deadlines looks every few milliseconds
            self.expire(now)
            return
        self.has_answer = True
        self._replies.append(reply)
        if not reply.more:
            self.finish()
            return
        self._extend_deadline()
        self._wake()

    def finish(self, error: TorchdError | None = None) -> None:
        """The outcome: answered, or `error`. Only the first call counts."""
        if self.state is State.DONE:
            return
        self.state = State.DONE
        self.error = error
        self.replied_at = self._clock.time()
        owner, self._owner = self._owner, None
        # First of all, lest whatever goes wrong below costs the client its answer.
        try:
            self._wake()
        finally:
            try:
                if owner is not None:
                    owner.release(self)
            finally:
                self._on_done(self)

    async def answer(self, most_bytes: float = math.inf) -> list[Reply]:
        """The whole answer at once; raises the outcome's error. Leaving early cancels the request.

        The chunks of a streamed answer are collected up to `most_bytes`; above, it is ResponseTooLarge.
        """
        taken: list[Reply] = []
        size = 0
        try:
            while True:
                while (reply := self.take()) is not None:
                    taken.append(reply)
                    size += len(reply.body)
                if size > most_bytes:
                    error = ResponseTooLarge(
                        f"the answer's chunks have more than {most_bytes} bytes together; stream it"
                    )
                    self.finish(error)
                    raise error
                if self.state is State.DONE:
                    if self.error is not None:
                        raise self.error
                    return taken
                await self._wait()
        finally:
            self.cancel()

    async def replies(self) -> AsyncGenerator[Reply, None]:
        """The answer piece by piece, as it comes; raises the outcome's error. Leaving early cancels the request."""
        try:
            while True:
                while (reply := self.take()) is not None:
                    yield reply
                if self.state is State.DONE:
                    if self.error is not None:
                        raise self.error
                    return
                await self._wait()
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        if self.state is not State.DONE:
            self.finish(Cancelled("the client has gone"))

    def when_answered(self, tell: Callable[[Request], None]) -> None:
        """Has `tell` called once there is something to `take`, or the outcome: once, and now if there is already."""
        if self._replies or self.state is State.DONE:
            tell(self)
        else:
            self._tell = tell

    def take(self) -> Reply | None:
        """The next piece of the answer that has come; its last one has `more` false."""
        if not self._replies:
            return None
        reply = self._replies.popleft()
        if reply.more and self._owner is not None:
            self._owner.credit(self, len(reply.body) + CHUNK_OVERHEAD)
        return reply

    async def _wait(self) -> None:
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake(request: Request) -> None:
            if not news.done():
                news.set_result(None)

        self._tell = wake
        await news

    def _wake(self) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(self)

    def _extend_deadline(self) -> None:
        self.deadline = min(self.client_deadline, self._clock.time() + self.response_timeout)

    def expire(self, now: float) -> None:
        """Its deadline has passed."""
        waited = now - self.received_at
        if self.state is State.SENT:
            self.finish(DeadlineExceeded(f"the deadline passed after {waited:.3f} s, while the model was running"))
        else:
            self.finish(
                DeadlineInQueue(f"the deadline passed after {waited:.3f} s in the queue; the request was not run")
            )
