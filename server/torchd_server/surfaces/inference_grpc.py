"""InferenceAPIsService over gRPC: PredictionsRequest to Call, Reply to PredictionResponse."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
from google.protobuf.empty_pb2 import Empty

from torchd_protos.frames import Call, Header, Part
from torchd_protos.inference_pb2 import PredictionResponse, PredictionsRequest, TorchServeHealthResponse
from torchd_protos.inference_pb2_grpc import InferenceAPIsServiceServicer
from torchd_server.inference import Inference
from torchd_server.surfaces.status import abort

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
# Metadata that gRPC itself adds; everything else is the client's and reaches the handler.
_GRPC_METADATA = ("grpc-", "user-agent")


class InferenceSurface(InferenceAPIsServiceServicer):
    """Translates; `Inference` decides."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    async def Ping(self, request: Empty, context: Context) -> TorchServeHealthResponse:
        """Health, always with status OK as TorchServe answers it."""
        health = "Healthy" if self._inference.is_healthy() else "Unhealthy"
        return TorchServeHealthResponse(health=f'{{\n  "status": "{health}"\n}}')

    async def Predictions(self, request: PredictionsRequest, context: Context) -> PredictionResponse:
        """One answer."""
        try:
            reply = await self._inference.predict(_call(request, context))
        except Exception as error:
            await abort(context, error)
            raise
        return PredictionResponse(prediction=bytes(reply.body))

    async def StreamPredictions(
        self, request: PredictionsRequest, context: Context
    ) -> AsyncIterator[PredictionResponse]:
        """One message per chunk."""
        try:
            replies = self._inference.stream(_call(request, context))
            try:
                async for reply in replies:
                    yield PredictionResponse(prediction=bytes(reply.body))
            finally:
                await replies.aclose()  # a client that left takes its request back
        except Exception as error:
            await abort(context, error)


def _call(request: PredictionsRequest, context: Context) -> Call:
    remaining = context.time_remaining()
    return Call(
        model=request.model_name,
        version=request.model_version,
        request_id=str(uuid.uuid4()),
        headers=[
            Header(name, value)
            for name, value in context.invocation_metadata() or ()
            if isinstance(value, str) and not name.startswith(_GRPC_METADATA)
        ],
        parts=[Part(name, "", value) for name, value in request.input.items()],
        timeout_ms=0 if remaining is None else max(1, int(remaining * 1000)),
    )
