"""grpc.health.v1 (https://github.com/grpc/grpc/blob/master/doc/health-checking.md), read off the registry when asked.

Services: "" is the daemon itself, each gRPC service by its name, `<model>` and `<model>/<version>`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import TypeAlias

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from torchd_server.registry import ModelRegistry

Context: TypeAlias = grpc.aio.ServicerContext[HealthCheckRequest, HealthCheckResponse]
SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


class HealthSurface(HealthServicer):
    """Says whether the daemon, or one model, can answer now."""

    def __init__(self, registry: ModelRegistry, services: Collection[str]) -> None:
        self._registry = registry
        self._services = frozenset(services) | {""}
        self._draining = False

    def drain(self) -> None:
        """From now on nothing is serving."""
        self._draining = True
        self._registry.changed()

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """The state now."""
        status = self._status(request.service)
        if status == UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service and no model is called '{request.service}'")
        return HealthCheckResponse(status=status)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> AsyncIterator[HealthCheckResponse]:
        """The state now and after every change of it; ends when the daemon drains."""
        with self._registry.watch() as watch:
            told = None
            while told is None or not self._draining:
                status = self._status(request.service)
                if status != told:
                    told = status
                    yield HealthCheckResponse(status=status)
                    continue  # it may have changed while the message was written
                await watch.change()
            if told != NOT_SERVING:
                yield HealthCheckResponse(status=self._status(request.service))

    def _status(self, service: str) -> int:
        if service in self._services:
            return int(NOT_SERVING if self._draining else SERVING)
        name, _, version = service.partition("/")
        serving = self._registry.is_serving(name, version)
        if serving is None:
            return int(UNKNOWN)
        return int(SERVING if serving and not self._draining else NOT_SERVING)
