"""TorchServe's own gRPC contracts in a descriptor pool of their own: no generated module of a test meets them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import status_pb2
from harness.stubs import TORCHSERVE_PROTOS

_PACKAGES = {
    "InferenceAPIsService": "org.pytorch.serve.grpc.inference",
    "ManagementAPIsService": "org.pytorch.serve.grpc.management",
    "GRPCInferenceService": "org.pytorch.serve.grpc.openinference",
}


@dataclass(frozen=True, slots=True)
class Rpc:
    """One rpc: its path on the wire, its message classes, its shape."""

    path: str
    request: Any
    reply: Any
    streams_requests: bool
    streams_replies: bool


@cache
def find(name: str) -> Rpc:
    """The rpc "Service/Method"."""
    service, method = name.split("/")
    full = f"{_PACKAGES[service]}.{service}"
    found = pool().FindServiceByName(full).FindMethodByName(method)
    return Rpc(
        f"/{full}/{method}",
        message_factory.GetMessageClass(found.input_type),
        message_factory.GetMessageClass(found.output_type),
        found.client_streaming,
        found.server_streaming,
    )


@cache
def pool() -> descriptor_pool.DescriptorPool:
    """A pool with TorchServe's three services."""
    googleapis = Path(status_pb2.__file__).parents[2]
    protos = ["inference.proto", "management.proto", "open_inference.proto", "google/rpc/error_details.proto"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{TORCHSERVE_PROTOS}", f"-I{googleapis}"]
        command += [f"--descriptor_set_out={out}", "--include_imports", *protos]
        subprocess.run(command, check=True, timeout=60)
        files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    found = descriptor_pool.DescriptorPool()
    for file in files.file:
        found.Add(file)
    return found
