"""The far side, and both kinds of client behind one face, so that every test of a method runs against both."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from inspect import isasyncgen
from typing import Any

import pytest
from clients.fake_server import OPTIONS, FakeServer

from torchd_clients import AsyncClient, Client


class OnALoop:
    """An AsyncClient with the face of a Client: each call runs on a loop of its own until it is done."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._client = AsyncClient(*args, **kwargs)  # outside any loop, as programs do
        self._loop = asyncio.new_event_loop()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = getattr(self._client, name)(*args, **kwargs)
            return self._chunks(result) if isasyncgen(result) else self._loop.run_until_complete(result)

        return call

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()

    def _chunks(self, stream: AsyncGenerator[bytes, None]) -> Generator[bytes, None, None]:
        try:
            while True:
                yield self._loop.run_until_complete(anext(stream))
        except StopAsyncIteration:
            return
        finally:
            self._loop.run_until_complete(stream.aclose())


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture(params=[Client, OnALoop], ids=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes a client of either kind for an address; closes it after the test."""
    opened = []

    def connect(address: str, **settings: Any) -> Any:
        opened.append(request.param(address, address, channel_options=OPTIONS, **settings))
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


@pytest.fixture
def client(server: FakeServer, connect: Callable[..., Any]) -> Any:
    return connect(server.address)


@pytest.fixture
def free_address() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"
