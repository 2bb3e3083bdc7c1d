"""The contracts as others see them: TorchServe's field numbers, and foreign stubs beside ours in one process."""

from __future__ import annotations

import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from harness.stubs import TORCHSERVE_PROTOS, generate_stubs

from torchd_protos import inference_pb2, management_pb2, open_inference_pb2

# TorchServe's messages as its last release has them: field -> (number, type).
S, I, B, Y = "string", "int32", "bool", "bytes"  # noqa: E741
TORCHSERVE_MESSAGES = {
    "PredictionsRequest": {"model_name": (1, S), "model_version": (2, S), "input": (3, "map"), "sequence_id": (4, S)},
    "PredictionResponse": {"prediction": (1, Y), "sequence_id": (2, S), "status": (3, "google.rpc.Status")},
    "TorchServeHealthResponse": {"health": (1, S)},
    "ManagementResponse": {"msg": (1, S)},
    "DescribeModelRequest": {"model_name": (1, S), "model_version": (2, S), "customized": (3, B)},
    "ListModelsRequest": {"limit": (1, I), "next_page_token": (2, I)},
    "RegisterModelRequest": {
        "batch_size": (1, I),
        "handler": (2, S),
        "initial_workers": (3, I),
        "max_batch_delay": (4, I),
        "model_name": (5, S),
        "response_timeout": (6, I),
        "runtime": (7, S),
        "synchronous": (8, B),
        "url": (9, S),
        "s3_sse_kms": (10, B),
        "startup_timeout": (11, I),
    },
    "ScaleWorkerRequest": {
        "model_name": (1, S),
        "model_version": (2, S),
        "max_worker": (3, I),
        "min_worker": (4, I),
        "number_gpu": (5, I),
        "synchronous": (6, B),
        "timeout": (7, I),
    },
    "SetDefaultRequest": {"model_name": (1, S), "model_version": (2, S)},
    "UnregisterModelRequest": {"model_name": (1, S), "model_version": (2, S)},
}
TORCHSERVE_METHODS = {
    "org.pytorch.serve.grpc.inference.InferenceAPIsService": {
        "Ping": ("Empty", "TorchServeHealthResponse", False),
        "Predictions": ("PredictionsRequest", "PredictionResponse", False),
        "StreamPredictions": ("PredictionsRequest", "PredictionResponse", True),
    },
    "org.pytorch.serve.grpc.management.ManagementAPIsService": {
        f"{name}{noun}": (f"{name}{noun}Request", "ManagementResponse", False)
        for name, noun in [
            ("Describe", "Model"),
            ("List", "Models"),
            ("Register", "Model"),
            ("Scale", "Worker"),
            ("Set", "Default"),
            ("Unregister", "Model"),
        ]
    },
}
TYPE_NAMES = {
    FieldDescriptor.TYPE_STRING: S,
    FieldDescriptor.TYPE_INT32: I,
    FieldDescriptor.TYPE_BOOL: B,
    FieldDescriptor.TYPE_BYTES: Y,
}
FILES = (inference_pb2.DESCRIPTOR, management_pb2.DESCRIPTOR)

# One message of each, there and back, with every stub in the same process.
ROUND_TRIPS = {
    "torchd": """
from torchd_protos import inference_pb2 as ours, management_pb2, worker_pb2, inference_pb2_grpc, management_pb2_grpc
from torchd_protos import open_inference_pb2 as open_inference, open_inference_pb2_grpc
sent = ours.PredictionsRequest(model_name="m", input={"data": b"1"})
assert ours.PredictionsRequest.FromString(sent.SerializeToString()) == sent
""",
    "torchserve": """
import inference_pb2 as theirs, management_pb2 as their_management, inference_pb2_grpc, management_pb2_grpc
sent = theirs.PredictionsRequest(model_name="m", input={"data": b"1"})
assert theirs.PredictionsRequest.FromString(sent.SerializeToString()) == sent
assert their_management.ManagementResponse(msg="ok").SerializeToString() == b"\\n\\x02ok"
""",
    "triton": """
import tritonclient.grpc as triton
sent = triton.service_pb2.ModelInferRequest(model_name="m", id="1")
assert triton.service_pb2.ModelInferRequest.FromString(sent.SerializeToString()) == sent
""",
}
ACROSS = """
wire = theirs.PredictionsRequest(model_name="m", model_version="2", input={"data": b"1"}).SerializeToString()
read = ours.PredictionsRequest.FromString(wire)
assert (read.model_name, read.model_version, dict(read.input)) == ("m", "2", {"data": b"1"})
wire = triton.service_pb2.ModelInferRequest(model_name="m", id="1", raw_input_contents=[b"1"]).SerializeToString()
assert open_inference.ModelInferRequest.FromString(wire).raw_input_contents == [b"1"]
reply = management_pb2.ManagementResponse(msg="done", summaries=[{"model_name": "m"}]).SerializeToString()
assert their_management.ManagementResponse.FromString(reply).msg == "done"
print("ok")
"""


@pytest.mark.parametrize("name", TORCHSERVE_MESSAGES)
def test_a_message_keeps_torchserves_field_numbers(name: str) -> None:
    [message] = [file.message_types_by_name[name] for file in FILES if name in file.message_types_by_name]
    ours = {field.name: (field.number, _type_of(field)) for field in message.fields}
    theirs = TORCHSERVE_MESSAGES[name]
    assert {field: ours.get(field) for field in theirs} == theirs
    # What is ours alone must not sit on a number or a name that TorchServe may have meant otherwise.
    assert {number for number, _ in theirs.values()}.isdisjoint(
        number for field, (number, _) in ours.items() if field not in theirs
    )


@pytest.mark.parametrize("service", TORCHSERVE_METHODS)
def test_a_service_keeps_torchserves_methods(service: str) -> None:
    [descriptor] = [found for file in FILES for found in file.services_by_name.values() if found.full_name == service]
    ours = {
        name: (method.input_type.name, method.output_type.name, method.server_streaming)
        for name, method in descriptor.methods_by_name.items()
    }
    theirs = TORCHSERVE_METHODS[service]
    assert {name: ours.get(name) for name in theirs} == theirs
    assert not any(descriptor.methods_by_name[name].client_streaming for name in theirs)


def test_the_open_inference_messages_are_tritons() -> None:
    """Names, numbers, types and labels of every field; ours may lack messages of Triton's, never change one."""
    from tritonclient.grpc import service_pb2  # in the default pool, ours beside it

    def layout(message: Descriptor) -> dict[str, tuple[int, int, int, str]]:
        return {
            field.name: (field.number, field.type, field.label, getattr(field.message_type, "full_name", ""))
            for field in message.fields
        }

    messages = list(open_inference_pb2.DESCRIPTOR.message_types_by_name.values())
    for message in messages:
        theirs = service_pb2.DESCRIPTOR.pool.FindMessageTypeByName(message.full_name)
        assert layout(message).items() <= layout(theirs).items(), message.full_name
        messages += [nested for nested in message.nested_types if not nested.GetOptions().map_entry]
    service = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    their_service = service_pb2.DESCRIPTOR.pool.FindServiceByName("inference.GRPCInferenceService")
    for method in service.methods:
        their = their_service.methods_by_name[method.name]
        assert (method.input_type.full_name, method.output_type.full_name) == (
            their.input_type.full_name,
            their.output_type.full_name,
        )
        assert (method.client_streaming, method.server_streaming) == (their.client_streaming, their.server_streaming)


def test_the_contracts_import_nothing_that_torchserves_did_not() -> None:
    """A user's documented protoc command names no further include path."""
    imports = {file.name for ours in FILES for file in ours.dependencies}
    assert imports == {"google/protobuf/empty.proto", "google/rpc/status.proto"}


@pytest.mark.parametrize("order", list(permutations(ROUND_TRIPS)), ids=" then ".join)
def test_everybodys_stubs_live_in_one_process(order: tuple[str, ...], tmp_path: Path) -> None:
    """Stubs made from TorchServe's layout, Triton's and torchd's, imported in every order."""
    stubs = generate_stubs(TORCHSERVE_PROTOS, tmp_path / "stubs")
    code = f"import sys\nsys.path[:0] = {[str(stubs), *_our_folders()]!r}\n"
    code += "".join(ROUND_TRIPS[name] for name in order) + ACROSS
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "ok\n", done.stderr


def _type_of(field: FieldDescriptor) -> str:
    if field.message_type is None:
        return TYPE_NAMES[field.type]
    return "map" if field.message_type.GetOptions().map_entry else str(field.message_type.full_name)


def _our_folders() -> list[str]:
    return [path for path in sys.path if Path(path, "torchd_protos").is_dir()]
