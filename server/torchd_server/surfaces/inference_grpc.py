"""InferenceAPIsService over gRPC: PredictionsRequest to Call, Reply to PredictionResponse.

Predictions, the method everything is measured by, is served from the bytes of its message (prediction_wire.py).
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeAlias

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from torchd_protos.frames import Call, Header, Part
from torchd_protos.inference_pb2 import DESCRIPTOR, PredictionResponse, PredictionsRequest, TorchServeHealthResponse
from torchd_server.errors import BadRequest
from torchd_server.inference import Inference
from torchd_server.request_ids import new_request_id
from torchd_server.settings import SequenceHeaders
from torchd_server.surfaces import prediction_wire
from torchd_server.surfaces.grpc_methods import Handler, Methods
from torchd_server.surfaces.prediction_wire import Asked
from torchd_server.surfaces.sequence_stream import SequenceCall, SequenceStream
from torchd_server.surfaces.status import abort

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
# Metadata that gRPC itself adds, and the token, which is the guard's alone; everything else reaches the handler.
_GRPC_METADATA = ("grpc-", "user-agent", "authorization")
SERVICE = DESCRIPTOR.services_by_name["InferenceAPIsService"].full_name
DEFAULT_NAMES = SequenceHeaders()


def add_to_server(surface: InferenceSurface, server: grpc.aio.Server | Methods) -> None:
    """Serves it."""
    asked, answered = PredictionsRequest.FromString, PredictionResponse.SerializeToString
    handlers: dict[str, Handler] = {
        "Ping": grpc.unary_unary_rpc_method_handler(
            surface.ping, Empty.FromString, TorchServeHealthResponse.SerializeToString
        ),
        "Predictions": grpc.unary_unary_rpc_method_handler(surface.predictions()),
        "StreamPredictions": grpc.unary_stream_rpc_method_handler(surface.stream_predictions, asked, answered),
        "StreamPredictions2": grpc.stream_stream_rpc_method_handler(surface.stream_predictions_2, asked, answered),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class InferenceSurface:
    """Translates; `Inference` decides. `names` are the headers that say which sequence a request belongs to."""

    def __init__(self, inference: Inference, names: SequenceHeaders = DEFAULT_NAMES) -> None:
        self._inference = inference
        self._names = names

    async def ping(self, request: Empty, context: Context) -> TorchServeHealthResponse:
        """Health, always with status OK as TorchServe answers it."""
        health = "Healthy" if self._inference.is_healthy() else "Unhealthy"
        return TorchServeHealthResponse(health=f'{{\n  "status": "{health}"\n}}')

    def predictions(self) -> Callable[[bytes, Context], Awaitable[bytes]]:
        """Predictions, from message to message: a plain function, for gRPC looks at each call what it is."""
        predict, call_of = self._inference.predict, self._call

        async def predictions(message: bytes, context: Context) -> bytes:
            try:
                asked = _asked(message)
                reply = await predict(call_of(asked, context))
            except Exception as error:
                await abort(context, error)
                raise
            return prediction_wire.answer(reply.body, asked.sequence)

        return predictions

    async def stream_predictions(
        self, request: PredictionsRequest, context: Context
    ) -> AsyncIterator[PredictionResponse]:
        """One message per chunk."""
        try:
            replies = self._inference.stream(self._call(prediction_wire.asked_in(request), context))
            try:
                async for reply in replies:
                    yield PredictionResponse(prediction=bytes(reply.body))
            finally:
                await replies.aclose()  # a client that left takes its request back
        except Exception as error:
            await abort(context, error)

    async def stream_predictions_2(
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
            call = self._call(prediction_wire.asked_in(request), context)
            if request.sequence_id:
                yield SequenceCall(call, request.sequence_id, is_own=False)
                continue
            headers = [*call.headers]
            if not own:
                own = f"ts-seq-{uuid.uuid4()}"
                headers.append(Header(names.start, "true"))
            yield SequenceCall(replace(call, headers=[*headers, Header(names.id, own)]), own, is_own=True)

    def _call(self, asked: Asked, context: Context) -> Call:
        names = self._names
        remaining = context.time_remaining()
        headers = [
            Header(name, value)
            for name, value in context.invocation_metadata() or ()
            if not name.startswith(_GRPC_METADATA) and isinstance(value, str)
        ]
        if asked.sequence:
            headers.append(Header(names.id, asked.sequence))
        # TorchServe's clients say where a sequence starts and ends by entries of the input.
        for name in (names.start, names.end):
            if name in asked.input:
                headers.append(Header(name, str(asked.input.pop(name), "utf-8", "replace")))
        return Call(
            model=asked.model,
            version=asked.version,
            request_id=new_request_id(),
            headers=headers,
            parts=[Part(name, "", value) for name, value in asked.input.items()],
            timeout_ms=0 if remaining is None else max(1, int(remaining * 1000)),
        )


def _asked(message: bytes) -> Asked:
    try:
        return prediction_wire.asked_of(message)
    except DecodeError as error:
        raise BadRequest(f"the message is no PredictionsRequest: {error}") from error
