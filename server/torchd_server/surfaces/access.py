"""Tells who listens of every answer of a gRPC method."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any, TypeAlias

import grpc

from torchd_server.surfaces.grpc_methods import Handler

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
# peer, method, number of the status, seconds
GrpcAnswered = Callable[[str, str, int, float], None]


class AccessLayer:
    """Tells of every gRPC call when it has ended."""

    def __init__(self, answered: GrpcAnswered) -> None:
        self._answered = answered

    def __call__(self, method: str, handler: Handler) -> Handler:
        """The method's handler, with the telling around it."""
        kinds: tuple[tuple[Any, Any, Any], ...] = (
            (handler.unary_unary, grpc.unary_unary_rpc_method_handler, self._one),
            (handler.unary_stream, grpc.unary_stream_rpc_method_handler, self._many),
            (handler.stream_unary, grpc.stream_unary_rpc_method_handler, self._one),
            (handler.stream_stream, grpc.stream_stream_rpc_method_handler, self._many),
        )
        for behaviour, make, around in kinds:
            if iscoroutinefunction(behaviour) or isasyncgenfunction(behaviour):
                told: Handler = make(
                    around(method, behaviour), handler.request_deserializer, handler.response_serializer
                )
                return told
        return handler

    def _one(self, method: str, behaviour: Callable[[Any, Context], Awaitable[Any]]) -> Any:
        async def call(request: Any, context: Context) -> Any:
            started, peer = time.monotonic(), str(context.peer())
            try:
                return await behaviour(request, context)
            finally:
                self._tell(peer, method, context, started)

        return call

    def _many(self, method: str, behaviour: Callable[[Any, Context], AsyncGenerator[Any, None]]) -> Any:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            # Asked for now: gRPC does not know it of a connection that has broken.
            started, peer = time.monotonic(), str(context.peer())
            try:
                async with aclosing(behaviour(request, context)) as messages:
                    async for message in messages:
                        yield message
            finally:
                self._tell(peer, method, context, started)

        return call

    def _tell(self, peer: str, method: str, context: Context, started: float) -> None:
        code = context.code()
        number = code.value[0] if isinstance(code, grpc.StatusCode) else int(code or 0)
        self._answered(peer, method, number, time.monotonic() - started)
