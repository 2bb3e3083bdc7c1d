"""The descriptor pool of torchd's generated messages, apart from protobuf's default pool.

TorchServe's contracts keep their package names here, and a client may have stubs of its own generated from them:
in one pool the two would collide. The generated modules register in this pool (scripts/gen_protos.py sees to it).
"""

from __future__ import annotations

from google.protobuf import any_pb2, duration_pb2, empty_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import status_pb2


def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    for module in (any_pb2, duration_pb2, empty_pb2, status_pb2):  # what our contracts import
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool


def add(file: FileDescriptor) -> None:
    """Lets reflection find a service of another library (health, reflection itself) in this pool."""
    POOL.AddSerializedFile(file.serialized_pb)


POOL = _pool()
