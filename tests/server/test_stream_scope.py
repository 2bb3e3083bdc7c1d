"""A method's generator ends within its call, however the call ends: on real channels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from fakes import in_loop, until

from torchd_server import errors
from torchd_server.surfaces.access import AccessLayer
from torchd_server.surfaces.grpc_methods import Methods
from torchd_server.surfaces.status import abort
from torchd_server.surfaces.stream_scope import stream_scope

METHOD = "/some.Service/Method"
PATIENCE = 20.0
# More than the window of a stream whose client reads nothing.
LARGE = b"x" * 3 * 2**20
Told = list[tuple[str, str, int]]


@asynccontextmanager
async def served(handler: Any, told: Told) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server of this one method, in front of which stands what stands in front of the daemon's."""
    access = AccessLayer(lambda peer, method, code, seconds: told.append((peer.partition(":")[0], method, code)))
    methods = Methods([stream_scope, access])
    methods.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("some.Service", {"Method": handler}),))
    server = grpc.aio.server(handlers=[methods])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            yield channel
    finally:
        await server.stop(PATIENCE)


def opened(channel: grpc.aio.Channel, is_stream: bool) -> Any:
    """One call with one message."""
    if is_stream:
        return channel.stream_stream(METHOD)(iter([b"m"]), timeout=PATIENCE)
    return channel.unary_stream(METHOD)(b"m", timeout=PATIENCE)


def handler_of(behaviour: Callable[[Any, Any], Any], is_stream: bool) -> Any:
    make = grpc.stream_stream_rpc_method_handler if is_stream else grpc.unary_stream_rpc_method_handler
    return make(behaviour)


@pytest.mark.parametrize("is_stream", [False, True])
@in_loop
async def test_a_client_that_leaves_during_a_write_ends_the_generator_in_its_own_call(is_stream: bool) -> None:
    ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    told: Told = []

    async def large(request: Any, context: Any) -> AsyncIterator[bytes]:
        own = asyncio.current_task()
        try:
            while True:  # of a write that a client leaves, gRPC may say that it was done
                yield LARGE
        finally:
            # In any other task the call is over, and whoever asked it for something would crash.
            ended.set_result(asyncio.current_task() is own)

    async with served(handler_of(large, is_stream), told) as channel:
        call = opened(channel, is_stream)
        await call.initial_metadata()  # comes with the beginning of the message
        call.cancel()
        assert await asyncio.wait_for(ended, PATIENCE)
        assert await call.code() is grpc.StatusCode.CANCELLED
        await until(lambda: told)
    assert told == [("ipv4", METHOD, 0)]


@pytest.mark.parametrize("is_stream", [False, True])
@in_loop
async def test_messages_and_the_error_behind_them_arrive(is_stream: bool) -> None:
    told: Told = []

    async def two(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"
        await abort(context, errors.BadRequest("no more"))

    async with served(handler_of(two, is_stream), told) as channel:
        call = opened(channel, is_stream)
        assert [await call.read(), await call.read()] == [b"one", b"two"]
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await call.details() == "no more"
    assert told == [("ipv4", METHOD, grpc.StatusCode.INVALID_ARGUMENT.value[0])]


def test_one_answer_needs_no_scope() -> None:
    async def echo(request: bytes, context: Any) -> bytes:
        return request

    handler = grpc.unary_unary_rpc_method_handler(echo)
    assert stream_scope(METHOD, handler) is handler
