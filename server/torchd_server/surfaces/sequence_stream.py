"""One StreamPredictions2 call: requests in, their answers out in the same order, errors inside the stream."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from torchd_protos.frames import Call
from torchd_protos.inference_pb2 import PredictionResponse
from torchd_server import errors
from torchd_server.inference import Inference
from torchd_server.request import Request
from torchd_server.surfaces.status import grpc_status_of

logger = logging.getLogger(__name__)

# Requests of one call that may be on their way; the next is read when the first of them is answered.
PIPELINE = 16


@dataclass(frozen=True, slots=True)
class SequenceCall:
    """One request of the stream and the sequence its answers name."""

    call: Call
    sequence: str
    # Made by the server for this stream: it ends with it.
    is_own: bool


@dataclass(frozen=True, slots=True)
class _Pending:
    sequence: str
    outcome: Request | Exception


class SequenceStream:
    """Reads ahead at most PIPELINE requests, so that they wait in the model's queue and not for the client's pace."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        # The last entry of a stream is None.
        self._pending: asyncio.Queue[_Pending | None] = asyncio.Queue()
        self._places = asyncio.Semaphore(PIPELINE)
        self._unanswered: deque[_Pending] = deque()
        self._answered = asyncio.Event()
        self._own: set[tuple[str, str, str]] = set()

    async def answers(self, calls: AsyncIterator[SequenceCall]) -> AsyncGenerator[PredictionResponse, None]:
        """Every answer, in the order of the requests. Close it: a client that left takes its requests back."""
        reader = asyncio.create_task(self._read(calls), name="read StreamPredictions2")
        forget = self._inference.on_drain(reader.cancel)
        try:
            while (pending := await self._pending.get()) is not None:
                async with aclosing(_responses(pending)) as responses:
                    async for response in responses:
                        yield response
                self._unanswered.popleft()
                self._places.release()
                self._answered.set()
            await asyncio.wait([reader])
            if reader.cancelled():  # nobody reads what this client still has to say
                raise errors.Draining
            reader.result()
        finally:
            forget()
            reader.cancel()
            await asyncio.wait([reader])
            if not reader.cancelled() and (error := reader.exception()) is not None:
                logger.debug("a stream could not be read to its end: %s", error)
            for left in self._unanswered:
                if isinstance(left.outcome, Request):
                    left.outcome.cancel()
            for model, version, sequence in self._own:
                self._inference.close_sequence(model, version, sequence)

    async def _read(self, calls: AsyncIterator[SequenceCall]) -> None:
        try:
            async for call in calls:
                await self._places.acquire()
                pending = _Pending(call.sequence, await self._submit(call.call))
                if call.is_own and isinstance(pending.outcome, Request):  # the names of others are without number
                    self._own.add((call.call.model, call.call.version, call.sequence))
                self._unanswered.append(pending)
                self._pending.put_nowait(pending)
        finally:
            self._pending.put_nowait(None)

    async def _submit(self, call: Call) -> Request | Exception:
        """The accepted request or why it was refused. A sequence that is full of this stream's own requests is no
        reason: then the client is ahead, and is read again when one of them is answered."""
        while True:
            try:
                return self._inference.submit(call)
            except errors.SequenceFull as error:
                if not self._unanswered:
                    return error
                self._answered.clear()
                await self._answered.wait()
            except Exception as error:
                return error


async def _responses(pending: _Pending) -> AsyncGenerator[PredictionResponse, None]:
    try:
        if isinstance(pending.outcome, Exception):
            raise pending.outcome
        async with aclosing(pending.outcome.replies()) as replies:
            async for reply in replies:
                yield PredictionResponse(prediction=bytes(reply.body), sequence_id=pending.sequence)
    except Exception as error:
        if not isinstance(error, errors.TorchdError):
            logger.error("internal error", exc_info=error)
        response = PredictionResponse(sequence_id=pending.sequence)
        # Our messages live in a pool of their own: between the two classes of google.rpc.Status go bytes.
        response.status.ParseFromString(grpc_status_of(error).SerializeToString())
        yield response
