"""A client without any .proto file lists every service and calls every method, as grpcurl would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from faults.arena import Arena, wait_workers
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from harness.daemon import Daemon
from harness.surfaces import open_channel

INFERENCE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
MANAGEMENT = "org.pytorch.serve.grpc.management.ManagementAPIsService"
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
PREDICTION = {"modelName": "zoo", "input": {"data": "eyJpZCI6ICJyIn0="}}  # {"id": "r"}
REQUESTS: dict[str, dict[str, Any]] = {
    "Predictions": PREDICTION,
    "StreamPredictions": PREDICTION,
    "RegisterModel": {"url": "zoo-2.0.mar"},
    "ScaleWorker": {"modelName": "zoo", "minWorker": 1, "synchronous": True},
    "DescribeModel": {"modelName": "zoo"},
    "SetDefault": {"modelName": "zoo", "modelVersion": "1.0"},
    "UnregisterModel": {"modelName": "zoo", "modelVersion": "2.0"},
    "ModelReady": {"name": "zoo"},
    "ModelMetadata": {"name": "zoo"},
    "ModelInfer": {"modelName": "zoo", "id": "r"},
    "ModelStreamInfer": {"modelName": "zoo", "id": "r"},
    "ServerReflectionInfo": {"listServices": ""},
}
# In this order, where order matters; methods not named come first.
LAST = ["RegisterModel", "UnregisterModel"]


@pytest.fixture
def daemon(arena: Arena) -> Iterator[Daemon]:
    """A daemon that serves version 1.0 and has 2.0 in its store."""
    arena.pack(minWorkers=1, maxWorkers=1)
    arena.pack(version="2.0")
    with arena.daemon(models=("zoo=zoo-1.0.mar",)) as daemon:
        wait_workers(arena.client("grpc", daemon), 1)
        yield daemon
    arena.ledger.executions.unlink()  # these requests were not sent through the arena


@pytest.mark.parametrize(("port", "own"), [("grpc_inference", INFERENCE), ("grpc_management", MANAGEMENT)])
def test_every_service_can_be_listed_and_called_without_a_proto_file(daemon: Daemon, port: str, own: str) -> None:
    with open_channel(daemon, port) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        services = set(database.get_services())
        assert services >= {own, HEALTH, REFLECTION}
        methods = [method for service in sorted(services) for method in pool.FindServiceByName(service).methods]
        methods.sort(key=lambda method: LAST.index(method.name) if method.name in LAST else -1)
        for method in methods:
            replies = _call(channel, method)
            assert replies, method.full_name
            if method.name in ("Predictions", "StreamPredictions"):
                assert json.loads(replies[0].prediction)["id"] == "r"


def test_health_names_the_server_its_services_and_its_models(daemon: Daemon) -> None:
    """P13: the standard service, on both ports."""
    for port, own in (("grpc_inference", INFERENCE), ("grpc_management", MANAGEMENT)):
        with open_channel(daemon, port) as channel:
            pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
            check = pool.FindServiceByName(HEALTH).FindMethodByName("Check")
            for name in ("", own, "zoo", "zoo/1.0"):
                [reply] = _call(channel, check, {"service": name})
                assert reply.status == 1, name
            with pytest.raises(grpc.RpcError) as unknown:
                _call(channel, check, {"service": "nobody"})
            assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


def _call(channel: grpc.Channel, method: MethodDescriptor, fields: dict[str, Any] | None = None) -> list[Any]:
    """The first replies of one call whose messages are known from reflection only."""
    request_class, reply_class = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    request = ParseDict(REQUESTS.get(method.name, {}) if fields is None else fields, request_class())
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = ("stream" if method.client_streaming else "unary", "stream" if method.server_streaming else "unary")
    call = getattr(channel, "_".join(kind))(path, request_class.SerializeToString, reply_class.FromString)
    outcome = call(iter([request]) if method.client_streaming else request, timeout=30)
    if not method.server_streaming:
        return [outcome]
    first = [next(outcome)]
    outcome.cancel()  # Watch has no end
    return first
