"""Keeps a gRPC method's generator within the life of its call. It is the outermost layer of a method."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from inspect import isasyncgenfunction
from typing import Any, TypeAlias

import grpc

from torchd_server.surfaces.grpc_methods import Handler

logger = logging.getLogger(__name__)
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


def stream_scope(method: str, handler: Handler) -> Handler:
    """The handler; where it answers by a generator, one that goes through it and closes it before the call is over.

    Left to gRPC, the generator of a client that went away during a write is closed by the event loop some time later.
    gRPC has freed the call by then: a `context.peer()` or `abort()` in a `finally` would end the whole process.
    """
    if not handler.response_streaming:
        return handler
    behaviour, make = (
        (handler.stream_stream, grpc.stream_stream_rpc_method_handler)
        if handler.request_streaming
        else (handler.unary_stream, grpc.unary_stream_rpc_method_handler)
    )
    if not isasyncgenfunction(behaviour):
        return handler
    return make(_writes(behaviour), handler.request_deserializer, handler.response_serializer)


def _writes(behaviour: Callable[[Any, Context], AsyncGenerator[Any, None]]) -> Any:
    async def call(request: Any, context: Context) -> None:
        async with aclosing(behaviour(request, context)) as messages:
            async for message in messages:
                try:
                    await context.write(message)
                except grpc.aio.InternalError as error:
                    # The stream is gone, and gRPC has not said so yet; of its own error it would make a traceback.
                    logger.debug("a client left while a message was written: %s", error)
                    raise asyncio.CancelledError from error

    return call
