"""The methods of a gRPC port, each behind what stands in front of it.

gRPC's interceptors are asked again for each call, by coroutines. What stands in front of a method here is put around it
once, when it is first called; only the door, who may say no to a call, is asked each time, and by a plain call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import grpc

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
# What is put around a method: its full name and its handler, and the handler to use instead.
Layer: TypeAlias = "Callable[[str, Handler], Handler]"
# The handler that refuses a call; None lets it in.
Door: TypeAlias = "Callable[[grpc.HandlerCallDetails], Handler | None]"


class Methods(grpc.GenericRpcHandler):
    """Stands in for the server to which services are added, and is the one handler of the real one."""

    def __init__(self, layers: Sequence[Layer] = (), door: Door | None = None) -> None:
        """The first of `layers` is the outermost."""
        self._layers = layers
        self._door = door
        self._services: list[grpc.GenericRpcHandler] = []
        self._ready: dict[str, Handler] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """As a server has it; of two handlers for a method the first one added serves it."""
        self._services += handlers

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        """As a server has it; generated code adds the same as generic handlers."""

    def service(self, details: grpc.HandlerCallDetails) -> Handler | None:
        """The handler of one call; None where there is no such method."""
        if self._door is not None and (refusal := self._door(details)) is not None:
            return self._behind_layers(details.method, refusal)
        return self._ready.get(details.method) or self._find(details)

    def _find(self, details: grpc.HandlerCallDetails) -> Handler | None:
        found = next((found for service in self._services if (found := service.service(details)) is not None), None)
        if found is not None:  # only names that exist are kept
            self._ready[details.method] = found = self._behind_layers(details.method, found)
        return found

    def _behind_layers(self, method: str, handler: Handler) -> Handler:
        for layer in reversed(self._layers):
            handler = layer(method, handler)
        return handler
