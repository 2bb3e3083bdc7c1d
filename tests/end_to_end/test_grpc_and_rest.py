"""Every use case through both surfaces, with the stubs a TorchServe user would generate, and with plain HTTP (P25)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.arena import Arena, Client, worker_pids
from harness.daemon import Daemon
from harness.stubs import TORCHSERVE_PROTOS, generate_stubs
from harness.surfaces import GrpcSurface, RestSurface, StreamBroken

NOT_FOUND = {"grpc": "NOT_FOUND", "rest": 404}


@pytest.fixture
def daemon(arena: Arena) -> Iterator[Daemon]:
    """A daemon with two versions of the zoo in its store, and none registered."""
    arena.pack(version="1.0")
    arena.pack(version="2.0")
    with arena.daemon() as daemon:
        yield daemon


@pytest.fixture
def client(arena: Arena, daemon: Daemon, surface: str) -> Client:
    """A client of the surface under test."""
    return arena.client(surface, daemon)


def test_a_model_lives_its_whole_life(arena: Arena, client: Client) -> None:
    """Register, predict, scale, describe, list, unregister, with TorchServe's sentences."""
    assert client.ping() == "Healthy"
    registered = client.register("zoo-1.0.mar", initial_workers=1)
    assert registered.sentence == 'Model "zoo" Version: 1.0 registered with 1 initial workers'
    assert arena.predict(client, say="hello").json()["say"] == "hello"

    assert client.scale("zoo", 2).sentence == "Workers scaled to 2 for model: zoo"
    [description] = client.describe("zoo").json()
    assert (description["minWorkers"], description["maxWorkers"]) == (2, 2)
    assert [worker["status"] for worker in description["workers"]] == ["READY", "READY"]

    assert client.models().json() == {"models": [{"modelName": "zoo", "modelUrl": "zoo-1.0.mar"}]}
    assert client.unregister("zoo").sentence == 'Model "zoo" unregistered'
    assert client.models().json()["models"] == []
    gone = arena.predict(client)
    assert gone.error is not None
    assert gone.error.code == NOT_FOUND[client.name]


def test_scaling_up_adds_workers_and_scaling_down_takes_them(arena: Arena, client: Client) -> None:
    client.register("zoo-1.0.mar", initial_workers=1)
    first = worker_pids(client)
    client.scale("zoo", 3)
    assert len(worker_pids(client)) == 3
    assert first < worker_pids(client)
    client.scale("zoo", 1)
    assert len(worker_pids(client)) == 1


def test_a_model_registered_without_workers_refuses_requests(arena: Arena, client: Client) -> None:
    sentence = client.register("zoo-1.0.mar").sentence
    assert sentence == (
        'Model "zoo" Version: 1.0 registered with 0 initial workers. '
        "Use scale workers API to add workers for the model."
    )
    refused = arena.predict(client).error
    assert refused is not None
    assert refused.code == {"grpc": "UNAVAILABLE", "rest": 503}[client.name]
    client.scale("zoo", 1)
    arena.predict(client).json()


def test_versions_live_side_by_side_and_the_default_can_be_changed(arena: Arena, client: Client) -> None:
    client.register("zoo-1.0.mar", initial_workers=1)
    client.register("zoo-2.0.mar", initial_workers=1)

    def version_of(version: str) -> str:
        request = arena.ledger.sent()
        answer = client.predict("zoo", json.dumps({"id": request}).encode(), version=version).json()
        arena.ledger.answered(request, echo=answer["id"])
        return str(answer["version"])

    assert [version_of(""), version_of("1.0"), version_of("2.0")] == ["1.0", "1.0", "2.0"]
    assert client.set_default("zoo", "2.0").sentence == 'Default version successfully updated for model "zoo" to "2.0"'
    assert version_of("") == "2.0"
    assert [each["modelVersion"] for each in client.describe("zoo", "all").json()] == ["1.0", "2.0"]
    assert [each["modelVersion"] for each in client.describe("zoo").json()] == ["2.0"]

    in_use = client.unregister("zoo", "2.0").error
    assert in_use is not None
    assert in_use.code == {"grpc": "FAILED_PRECONDITION", "rest": 403}[client.name]
    assert client.unregister("zoo", "1.0").error is None
    missing = client.describe("zoo", "1.0").error
    assert missing is not None
    assert missing.code == NOT_FOUND[client.name]


def test_a_version_is_registered_once(client: Client) -> None:
    assert client.register("zoo-1.0.mar").error is None
    twice = client.register("zoo-1.0.mar").error
    assert twice is not None
    assert twice.code == {"grpc": "ALREADY_EXISTS", "rest": 409}[client.name]
    assert "1.0" in twice.message


@pytest.mark.parametrize(
    ("url", "grpc_codes", "statuses"),
    [
        ("", {"INVALID_ARGUMENT"}, {404}),  # given and empty: TorchServe tells the two apart over REST
        ("missing.mar", {"NOT_FOUND", "INVALID_ARGUMENT"}, {404}),
        ("../executions", {"NOT_FOUND", "PERMISSION_DENIED", "INVALID_ARGUMENT"}, {404}),
        ("/etc/passwd", {"NOT_FOUND", "PERMISSION_DENIED", "INVALID_ARGUMENT"}, {404}),
        ("broken.mar", {"INVALID_ARGUMENT"}, {400}),
    ],
)
def test_an_archive_that_is_not_one_is_refused(
    arena: Arena, client: Client, url: str, grpc_codes: set[str], statuses: set[int]
) -> None:
    """S05 to S07: only archives that lie in the store, by name."""
    (arena.store / "broken.mar").write_bytes(b"this is no archive")
    error = client.register(url).error
    assert error is not None
    assert error.code in (grpc_codes if client.name == "grpc" else statuses), error
    assert client.models().json()["models"] == []


def test_many_models_are_listed_page_by_page(arena: Arena, client: Client) -> None:
    for name in ("ant", "bee", "cat"):
        arena.pack(name=name, file_name=f"{name}.mar")
        client.register(f"{name}.mar")
    first = client.models(limit=2).json()
    assert [model["modelName"] for model in first["models"]] == ["ant", "bee"]
    second = client.models(limit=2, token=int(first["nextPageToken"])).json()
    assert [model["modelName"] for model in second["models"]] == ["cat"]
    assert "nextPageToken" not in second


def test_a_stream_arrives_chunk_by_chunk_and_in_order(arena: Arena, client: Client) -> None:
    client.register("zoo-1.0.mar", initial_workers=1)
    request = arena.ledger.sent()
    body = json.dumps({"id": request, "do": "stream", "chunks": 5}).encode()
    pieces = list(client.stream("zoo", body))
    arena.ledger.answered(request, echo=request)
    expected = [f"{request} {number};" for number in range(5)] + [f"{request} end;"]
    assert b"".join(pieces).decode() == "".join(expected)
    if client.name == "grpc":
        assert [piece.decode() for piece in pieces] == expected


def test_a_large_stream_is_not_held_back(arena: Arena, client: Client) -> None:
    """Four times the window of a stream: credit flows back as the client reads."""
    client.register("zoo-1.0.mar", initial_workers=1)
    request = arena.ledger.sent()
    wish = {"id": request, "do": "stream", "chunks": 64, "size": 65536}
    received = b"".join(client.stream("zoo", json.dumps(wish).encode()))
    arena.ledger.answered(request, echo=request)
    assert received.count(b"x") == 64 * 65536
    assert received.endswith(b"end;")


def test_a_stream_whose_worker_dies_ends_with_an_error(arena: Arena, client: Client) -> None:
    """What came before is delivered; the end is an error, never a silent stop."""
    client.register("zoo-1.0.mar", initial_workers=1)
    request = arena.ledger.sent(deadly=True)
    body = json.dumps({"id": request, "do": "stream", "chunks": 3, "die_after": 1}).encode()
    received: list[bytes] = []
    with pytest.raises(StreamBroken) as broken:
        received.extend(client.stream("zoo", body))
    assert b"".join(received).decode() == f"{request} 0;{request} 1;"
    if client.name == "grpc":
        error = broken.value.error
        arena.ledger.answered(request, code=error.code, reason=error.reason)
        assert error.reason == "WORKER_DIED"
    else:
        arena.ledger.answered(request, code=500)
    arena.predict(client).json()


def test_a_plain_handler_answers_a_stream_with_one_message(arena: Arena, client: Client) -> None:
    client.register("zoo-1.0.mar", initial_workers=1)
    request = arena.ledger.sent()
    pieces = list(client.stream("zoo", json.dumps({"id": request}).encode()))
    answer = json.loads(b"".join(pieces))
    arena.ledger.answered(request, echo=answer["id"])


def test_a_streaming_handler_answers_a_plain_call_with_everything(arena: Arena, daemon: Daemon) -> None:
    """TorchServe returned the first chunk and left the worker stuck."""
    client = arena.client("grpc", daemon)
    client.register("zoo-1.0.mar", initial_workers=1)
    request = arena.ledger.sent()
    answer = client.predict("zoo", json.dumps({"id": request, "do": "stream", "chunks": 2}).encode())
    arena.ledger.answered(request, echo=request)
    assert answer.body.decode() == f"{request} 0;{request} 1;{request} end;"
    arena.predict(client).json()


@pytest.mark.parametrize("do", ["raise", "exit", "interrupt", "bad_output", "not_serializable"])
def test_a_handler_that_fails_is_an_error_of_the_handler(arena: Arena, client: Client, do: str) -> None:
    """W10, H: a typed error, and the worker goes on."""
    client.register("zoo-1.0.mar", initial_workers=1)
    before = worker_pids(client)
    error = arena.predict(client, do).error
    assert error is not None
    assert error.code == {"grpc": "UNKNOWN", "rest": 503}[client.name]
    arena.predict(client).json()
    assert worker_pids(client) == before


def test_what_a_handler_prints_is_nobodys_order(arena: Arena, client: Client) -> None:
    """TS9, H09 to H12: stdout is not a protocol."""
    client.register("zoo-1.0.mar", initial_workers=1)
    before = worker_pids(client)
    arena.predict(client, "print").json()
    arena.predict(client).json()
    assert worker_pids(client) == before


def test_a_handlers_status_and_headers_reach_a_rest_client(arena: Arena, daemon: Daemon) -> None:
    client = arena.client("rest", daemon)
    assert isinstance(client, RestSurface)
    client.register("zoo-1.0.mar", initial_workers=1)
    request = arena.ledger.sent()
    body = json.dumps({"id": request, "do": "status", "code": 201, "phrase": "Made"}).encode()
    answer = client.request("POST", "/predictions/zoo", body, {"Content-Type": "application/json"})
    arena.ledger.answered(request, echo=answer.json()["id"])
    assert answer.status == 201
    assert answer.headers["x-zoo"] == request


def test_models_named_at_the_start_are_served_when_the_daemon_is_ready(arena: Arena, surface: str) -> None:
    arena.pack(version="1.0", minWorkers=2, maxWorkers=2)
    with arena.daemon(models=("zoo=zoo-1.0.mar",)) as daemon:
        client = arena.client(surface, daemon)
        arena.predict(client).json()
        [description] = client.describe("zoo").json()
        assert description["minWorkers"] == 2
        assert description["loadedAtStartup"] is True


def test_typed_fields_say_what_the_json_says(arena: Arena, daemon: Daemon) -> None:
    """ManagementResponse keeps `msg` and carries the same content typed, so new clients parse no JSON."""
    client = arena.client("grpc", daemon)
    assert isinstance(client, GrpcSurface)
    messages = client.management_messages
    registered = client.management.RegisterModel(
        messages.RegisterModelRequest(url="zoo-1.0.mar", initial_workers=1, synchronous=True), timeout=60
    )
    assert (registered.change.model_name, registered.change.model_version) == ("zoo", "1.0")
    assert (registered.change.ready_workers, registered.change.wanted_workers) == (1, 1)
    assert registered.change.done
    described = client.management.DescribeModel(messages.DescribeModelRequest(model_name="zoo"), timeout=60)
    [document] = json.loads(described.msg)
    [typed] = described.models
    assert (typed.model_name, typed.model_version) == (document["modelName"], document["modelVersion"])
    assert typed.state == messages.ModelState.Value("MODEL_STATE_READY")
    assert typed.is_default
    assert [worker.pid for worker in typed.workers] == [worker["pid"] for worker in document["workers"]]
    listed = client.management.ListModels(messages.ListModelsRequest(), timeout=60)
    assert [summary.model_name for summary in listed.summaries] == ["zoo"]
    assert not listed.HasField("next_page_token")


def test_scaling_to_nothing_is_said_by_a_zero_that_is_there(arena: Arena, daemon: Daemon) -> None:
    """TorchServe could not: over gRPC a zero and nothing were the same."""
    client = arena.client("grpc", daemon)
    assert isinstance(client, GrpcSurface)
    client.register("zoo-1.0.mar", initial_workers=1)
    request = client.management_messages.ScaleWorkerRequest
    client.management.ScaleWorker(request(model_name="zoo", min_worker=0, synchronous=True), timeout=60)
    assert worker_pids(client) == set()
    client.management.ScaleWorker(request(model_name="zoo", synchronous=True), timeout=60)
    assert len(worker_pids(client)) == 1


TORCHSERVE_CLIENT = """
import sys, grpc
import inference_pb2, inference_pb2_grpc, management_pb2, management_pb2_grpc
from google.protobuf.empty_pb2 import Empty

inference = inference_pb2_grpc.InferenceAPIsServiceStub(grpc.insecure_channel(sys.argv[1]))
management = management_pb2_grpc.ManagementAPIsServiceStub(grpc.insecure_channel(sys.argv[2]))
print(inference.Ping(Empty()).health)
print(management.RegisterModel(
    management_pb2.RegisterModelRequest(url="zoo-1.0.mar", initial_workers=1, synchronous=True, model_name="mine")).msg)
request = inference_pb2.PredictionsRequest(model_name="mine", input={"data": sys.argv[3].encode()})
print(inference.Predictions(request).prediction.decode())
print(management.ScaleWorker(
    management_pb2.ScaleWorkerRequest(model_name="mine", min_worker=2, max_worker=2, synchronous=True)).msg)
print(management.DescribeModel(management_pb2.DescribeModelRequest(model_name="mine")).msg)
print(management.ListModels(management_pb2.ListModelsRequest(limit=10)).msg)
print(management.SetDefault(management_pb2.SetDefaultRequest(model_name="mine", model_version="1.0")).msg)
print(management.UnregisterModel(management_pb2.UnregisterModelRequest(model_name="mine")).msg)
"""


def test_a_client_made_from_torchserves_own_layout_works_unchanged(
    arena: Arena, daemon: Daemon, tmp_path: Path
) -> None:
    """Stubs that know TorchServe's fields and nothing of ours, in a process of their own."""
    request = arena.ledger.sent()
    stubs = generate_stubs(TORCHSERVE_PROTOS, tmp_path / "their_stubs")
    ports = [":".join(map(str, daemon.host_and_port(name))) for name in ("grpc_inference", "grpc_management")]
    done = subprocess.run(
        [sys.executable, "-c", TORCHSERVE_CLIENT, *ports, json.dumps({"id": request})],
        env={**daemon.environment, "PYTHONPATH": str(stubs)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"Healthy"' in done.stdout
    assert f'"{request}"' in done.stdout
    arena.ledger.answered(request, echo=request)
    for sentence in (
        'Model "mine" Version: 1.0 registered with 1 initial workers',
        "Workers scaled to 2 for model: mine",
        'Default version successfully updated for model "mine" to "1.0"',
        'Model "mine" unregistered',
    ):
        assert sentence in done.stdout.splitlines()
