"""grpc.health.v1 over a real channel: the daemon, its services, each model; asked once or watched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from fakes import FakePlacement, ManualClock, echoes, in_loop, machinery
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub, add_HealthServicer_to_server

from torchd_server.metrics import Metrics
from torchd_server.model import ModelVersion
from torchd_server.registry import ModelRegistry
from torchd_server.settings import ModelSettings
from torchd_server.store import UnpackedModel
from torchd_server.surfaces.health_grpc import HealthSurface

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


class Bench:
    """A health service over a registry with one model that has no worker yet."""

    def __init__(self, stub: HealthStub, surface: HealthSurface, registry: ModelRegistry, model: ModelVersion) -> None:
        self.stub, self.surface, self.registry, self.model = stub, surface, registry, model

    async def check(self, service: str) -> int:
        return int((await self.stub.Check(HealthCheckRequest(service=service), wait_for_ready=True)).status)


@asynccontextmanager
async def health() -> AsyncIterator[Bench]:
    registry = ModelRegistry()
    unpacked = UnpackedModel("m.mar", Path("/nowhere"), "m", "1.0", "h.py", "python", {}, "{}", "{}", True)
    parts = machinery(FakePlacement(echoes), ManualClock())
    labels = Metrics().of_model("m", "1.0")
    model = ModelVersion("m", "1.0", unpacked, ModelSettings(), parts, labels, registry.changed)
    registry.add(model)
    surface = HealthSurface(registry, ["some.Service"])
    server = grpc.aio.server()
    add_HealthServicer_to_server(surface, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = [("grpc.use_local_subchannel_pool", 1)]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            yield Bench(HealthStub(channel), surface, registry, model)
    finally:
        await model.stop(1.0)
        await server.stop(None)


@in_loop
async def test_the_daemon_and_its_services_are_serving_whatever_the_models_do() -> None:
    """P13: liveness does not depend on models."""
    async with health() as bench:
        assert [await bench.check(service) for service in ("", "some.Service")] == [SERVING, SERVING]
        assert [await bench.check(service) for service in ("m", "m/1.0")] == [NOT_SERVING, NOT_SERVING]


@in_loop
async def test_what_nobody_knows_is_not_found() -> None:
    async with health() as bench:
        for service in ("nobody", "m/2.0", "m/1.0/x", "/"):
            with pytest.raises(grpc.aio.AioRpcError) as missing:
                await bench.check(service)
            assert missing.value.code() is grpc.StatusCode.NOT_FOUND


@in_loop
async def test_a_watch_follows_a_model_and_ends_with_the_drain() -> None:
    """P13, P14."""
    async with health() as bench:
        call = bench.stub.Watch(HealthCheckRequest(service="m"), wait_for_ready=True)
        states = aiter(call)
        assert (await anext(states)).status == NOT_SERVING
        bench.model.scale(1, 1)
        assert (await anext(states)).status == SERVING
        bench.surface.drain()
        assert (await anext(states)).status == NOT_SERVING
        assert [state async for state in states] == []
        assert await bench.check("") == NOT_SERVING


@in_loop
async def test_a_watch_may_begin_before_the_model_is_there_and_outlive_it() -> None:
    async with health() as bench:
        call = bench.stub.Watch(HealthCheckRequest(service="m/1.0"), wait_for_ready=True)
        states = aiter(call)
        assert (await anext(states)).status == NOT_SERVING
        bench.registry.remove(bench.model)
        assert (await anext(states)).status == HealthCheckResponse.SERVICE_UNKNOWN
        bench.registry.add(bench.model)
        assert (await anext(states)).status == NOT_SERVING
        call.cancel()
