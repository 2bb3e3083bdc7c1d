"""The guard in front of a gRPC server: a method needs its port's access, unless its service is open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from torchd_server import errors
from torchd_server.surfaces.auth import Access, Guard
from torchd_server.surfaces.grpc_methods import Handler
from torchd_server.surfaces.status import abort


class TokenDoor:
    """Asks before a method is looked up, so that a stranger does not even learn which there are."""

    def __init__(self, guard: Guard, access: Access, open_services: frozenset[str]) -> None:
        self._guard = guard
        self._access = access
        self._open_services = open_services

    def __call__(self, details: grpc.HandlerCallDetails) -> Handler | None:
        """None, or a handler that only refuses."""
        service = details.method.rpartition("/")[0].removeprefix("/")
        if service in self._open_services:
            return None
        shown = [str(value) for name, value in details.invocation_metadata or () if name == "authorization"]
        try:
            self._guard.check(self._access, shown)
        except errors.TorchdError as error:
            return _refuses(error)
        return None


def _refuses(error: errors.TorchdError) -> Handler:
    # Streams both ways whatever the method is: it needs no message to answer, and waits for none.
    async def refuse(
        requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        await abort(context, error)
        yield b""  # never reached: it makes this a generator, which whoever stands in front of it may close

    return grpc.stream_stream_rpc_method_handler(refuse)
