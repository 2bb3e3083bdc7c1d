"""InferenceAPIsService over gRPC: PredictionsRequest to Call, Reply to PredictionResponse."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeAlias

import grpc
from google.protobuf.empty_pb2 import Empty

from torchd_protos.frames import Call, Header, Part
from torchd_protos.inference_pb2 import PredictionResponse, PredictionsRequest, TorchServeHealthResponse
from torchd_protos.inference_pb2_grpc import InferenceAPIsServiceServicer
from torchd_server.inference import Inference
from torchd_server.settings import SequenceHeaders
from torchd_server.surfaces.sequence_stream import SequenceCall, SequenceStream
from torchd_server.surfaces.status import abort

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
# Metadata that gRPC itself adds, and the token, which is the guard's alone; everything else reaches the handler.
_GRPC_METADATA = ("grpc-", "user-agent", "authorization")
DEFAULT_NAMES = SequenceHeaders()


class InferenceSurface(InferenceAPIsServiceServicer):
    """Translates; `Inference` decides. `names` are the headers that say which sequence a request belongs to."""

    def __init__(self, inference: Inference, names: SequenceHeaders = DEFAULT_NAMES) -> None:
        self._inference = inference
        self._names = names

    async def Ping(self, request: Empty, context: Context) -> TorchServeHealthResponse:
        """Health, always with status OK as TorchServe answers it."""
        health = "Healthy" if self._inference.is_healthy() else "Unhealthy"
        return TorchServeHealthResponse(health=f'{{\n  "status": "{health}"\n}}')

    async def Predictions(self, request: PredictionsRequest, context: Context) -> PredictionResponse:
        """One answer."""
        try:
            reply = await self._inference.predict(self._call(request, context))
        except Exception as error:
            await abort(context, error)
            raise
        sequence = request.sequence_id if request.HasField("sequence_id") else None
        return PredictionResponse(prediction=bytes(reply.body), sequence_id=sequence)

    async def StreamPredictions(
        self, request: PredictionsRequest, context: Context
    ) -> AsyncIterator[PredictionResponse]:
        """One message per chunk."""
        try:
            replies = self._inference.stream(self._call(request, context))
            try:
                async for reply in replies:
                    yield PredictionResponse(prediction=bytes(reply.body))
            finally:
                await replies.aclose()  # a client that left takes its request back
        except Exception as error:
            await abort(context, error)

    async def StreamPredictions2(
        self, request_iterator: AsyncIterator[PredictionsRequest], context: Context
    ) -> AsyncIterator[PredictionResponse]:
        """Answers in the order of the requests; an error of one of them is its answer."""
        try:
            async with aclosing(
                SequenceStream(self._inference).answers(self._calls(request_iterator, context))
            ) as all_of:
                async for response in all_of:
                    yield response
        except Exception as error:
            await abort(context, error)

    async def _calls(
        self, requests: AsyncIterator[PredictionsRequest], context: Context
    ) -> AsyncGenerator[SequenceCall, None]:
        """Requests without a sequence belong to one that this stream is."""
        names = self._names
        own = ""
        async for request in requests:
            call = self._call(request, context)
            if request.sequence_id:
                yield SequenceCall(call, request.sequence_id, is_own=False)
                continue
            headers = [*call.headers]
            if not own:
                own = f"ts-seq-{uuid.uuid4()}"
                headers.append(Header(names.start, "true"))
            yield SequenceCall(replace(call, headers=[*headers, Header(names.id, own)]), own, is_own=True)

    def _call(self, request: PredictionsRequest, context: Context) -> Call:
        names = self._names
        remaining = context.time_remaining()
        headers = [
            Header(name, value)
            for name, value in context.invocation_metadata() or ()
            if isinstance(value, str) and not name.startswith(_GRPC_METADATA)
        ]
        if request.sequence_id:
            headers.append(Header(names.id, request.sequence_id))
        # TorchServe's clients say where a sequence starts and ends by entries of the input.
        flags = [name for name in (names.start, names.end) if name in request.input]
        headers += [Header(name, request.input[name].decode("utf-8", "replace")) for name in flags]
        return Call(
            model=request.model_name,
            version=request.model_version,
            request_id=str(uuid.uuid4()),
            headers=headers,
            parts=[Part(name, "", value) for name, value in request.input.items() if name not in flags],
            timeout_ms=0 if remaining is None else max(1, int(remaining * 1000)),
        )
