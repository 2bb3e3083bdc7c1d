"""TorchServe's paths to a handler, what management can change and describe, both APIs on one address."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import pytest
from faults.arena import wait_workers
from harness.daemon import Daemon
from harness.surfaces import GrpcSurface, RestSurface, open_channel

from torchd_archiver.packing import PackRequest, pack

MODELS = Path(__file__).parents[1] / "models"


DOORS = [  # path, url_path, explain, what the handler is given
    ("/predictions/mirror?a=1", "", "False", {"body": "hi"}),
    ("/predictions/mirror/1.0", "", "False", {"body": "hi"}),
    ("/predictions/mirror/1.0/x/y", "x/y", "False", {"body": "hi"}),
    ("/explanations/mirror?a=1", "", "True", {"body": "hi"}),
    ("/explanations/mirror/1.0", "", "True", {"body": "hi"}),
    ("/invocations?a=1", "", "False", {"a": "1", "body": "hi"}),
    ("/invocations?model_name=mirror", "", "False", {"model_name": "mirror", "body": "hi"}),
    ("/models/mirror/invoke?a=1", "", "False", {"a": "1", "body": "hi"}),
    ("/mirror/predict?a=1", "", "False", {"a": "1", "body": "hi"}),
    ("/mirror/1.0/predict?a=1", "", "False", {"a": "1", "body": "hi"}),
    ("/v1/models/mirror:predict?a=1", "", "False", {"body": "hi"}),
    ("/v1/models/mirror:explain", "", "True", {"body": "hi"}),
]


def pack_mirror(store: Path, version: str = "1.0", config: str = "minWorkers: 1\nmaxWorkers: 1\n") -> str:
    store.mkdir(exist_ok=True)
    file = store.parent / "model-config.yaml"
    file.write_text(config)
    handler = MODELS / "mirror" / "handler.py"
    made = Path(
        pack(
            PackRequest(
                model_name="mirror", version=version, handler=str(handler), config_file=file, export_path=store.parent
            )
        )
    )
    made.rename(store / f"mirror-{version}.mar")
    return f"mirror-{version}.mar"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that was started with version 1.0 of the mirror and has 2.0 in its store."""
    store = tmp_path / "store"
    first = pack_mirror(store)
    pack_mirror(store, "2.0", "describes: false\n")
    with Daemon(tmp_path, store=store, models=(first,)) as daemon:
        wait_workers(RestSurface(daemon), 1, "mirror")
        yield daemon


def seen(rest: RestSurface, method: str, path: str, body: bytes | None = b"hi", **headers: str) -> Any:
    return rest.request(method, path, body, headers).json()


def test_every_path_leads_to_the_handler(daemon: Daemon) -> None:
    """Reference section 2.2: query parameters reach the handler by three of the doors only."""
    rest = RestSurface(daemon)
    for path, url_path, explain, parts in DOORS:
        for method in ("POST", "PUT"):
            told = seen(rest, method, path, b"hi", **{"Content-Type": "text/plain"})
            assert (told["url_path"], told["explain"], told["parts"]) == (url_path, explain, parts), path
    assert seen(rest, "GET", "/predictions/mirror", None)["parts"] == {"body": ""}
    tensors = {"inputs": [{"name": "a", "shape": [1], "datatype": "INT8", "data": [1]}]}
    for path in ("/v2/models/mirror/infer", "/v2/models/mirror/versions/1.0/infer", "/v2/models/mirror/explain"):
        told = seen(rest, "POST", path, json.dumps(tensors).encode(), **{"Content-Type": "application/json"})
        assert told["parts"] == {"body": tensors}
        assert told["explain"] == str(path.endswith("explain"))


def test_invocations_need_to_know_the_model(daemon: Daemon) -> None:
    """Reference section 2.2: the query, else the only startup model, else the form, else 400."""
    rest = RestSurface(daemon)
    rest.register("mirror-2.0.mar")
    assert seen(rest, "POST", "/invocations")["parts"] == {"body": "hi"}
    other = rest.request("POST", "/invocations?model_name=other", b"").error
    assert other is not None
    assert (other.code, other.message) == (404, "Model not found: other")
    rest.unregister("mirror", "2.0")
    rest.unregister("mirror")
    rest.register("mirror-2.0.mar", initial_workers=1)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    told = rest.request("POST", "/invocations", b"model_name=mirror&data=1", form).json()
    assert told["parts"] == {"model_name": "mirror", "data": "1"}
    missing = rest.request("POST", "/invocations", b"data=1", form).error
    assert missing is not None
    assert (missing.code, missing.message) == (400, "Parameter model_name is required.")


def test_a_model_and_the_server_tell_of_themselves(daemon: Daemon) -> None:
    rest = RestSurface(daemon)
    for path in ("/livez", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready"):
        assert rest.request("GET", path).status == 200, path
    assert rest.request("GET", "/v1/models").json() == {"models": ["mirror"]}
    for port in ("inference", "management"):
        assert rest.request("GET", "/v1/models/mirror", port=port).json() == {"name": "mirror", "ready": True}
    ready = rest.request("GET", "/v2/models/mirror/versions/1.0/ready").json()
    assert ready == {"name": "mirror", "ready": True}
    rest.register("mirror-2.0.mar", initial_workers=0)
    versions = rest.request("GET", "/v2/models/mirror").json()["versions"]
    assert versions == ["1.0", "2.0"]
    assert "/predictions/mirror" in rest.request("OPTIONS", "/predictions/mirror").json()["paths"]
    assert "/models/mirror" in rest.request("OPTIONS", "/models/mirror", port="management").json()["paths"]
    assert "/models" in rest.request("OPTIONS", "/", port="management").json()["paths"]


def describe(client: GrpcSurface | RestSurface, version: str = "") -> Any:
    if isinstance(client, RestSurface):
        return client.request("GET", f"/models/mirror/{version}?customized=true", port="management")
    messages = client.management_messages
    request = messages.DescribeModelRequest(model_name="mirror", model_version=version, customized=True)
    return client.management.DescribeModel(request, timeout=30)


def test_a_handler_describes_itself(daemon: Daemon) -> None:
    """Reference section 2.3: a JSON object; {} where the handler gives something else; "all" asks nobody."""
    rest = RestSurface(daemon)
    [row] = describe(rest).json()
    assert row["customizedMetadata"] == {"parts": 0, "kind": "mirror"}
    rest.register("mirror-2.0.mar")
    unserved = describe(rest, "2.0").error
    assert unserved is not None
    assert unserved.code == 503
    assert unserved.message == (
        'Model "mirror" has no worker to serve describe request. Please use scale workers API to add workers.'
    )
    rest.scale("mirror", 1, version="2.0")
    assert describe(rest, "2.0").json()[0]["customizedMetadata"] == {}
    assert all("customizedMetadata" not in row for row in describe(rest, "all").json())
    with GrpcSurface(daemon) as client:
        reply = describe(client)
        assert json.loads(reply.msg)[0]["customizedMetadata"] == {"parts": 0, "kind": "mirror"}
        assert json.loads(reply.models[0].customized_metadata) == {"parts": 0, "kind": "mirror"}


CHANGES = {
    "batch_size": (8, "batchSize"),
    "max_batch_delay": (7, "maxBatchDelay"),
    "response_timeout": (33, "responseTimeout"),
    "batch_wait": ("full", "batchWait"),
}


def test_settings_change_while_a_model_runs(daemon: Daemon, surface: str) -> None:
    """The same worker goes on, and the number of workers stays where only settings are given."""
    with RestSurface(daemon) as rest, GrpcSurface(daemon) as client:
        rest.scale("mirror", 2)
        [before] = rest.describe("mirror").json()
        given: dict[str, Any] = {name: value for name, (value, _) in CHANGES.items()}
        if surface == "rest":
            query = "&".join(f"{name}={value}" for name, value in {**given, "job_queue_size": 5}.items())
            sentence = rest.request("PUT", f"/models/mirror/1.0?{query}", port="management").sentence
        else:
            request = client.management_messages.ScaleWorkerRequest(model_name="mirror", job_queue_size=5, **given)
            sentence = client.management.ScaleWorker(request, timeout=30).msg
        assert sentence.startswith("Settings changed for model: mirror")
        [after] = rest.describe("mirror").json()
        assert {key: after[key] for _, key in CHANGES.values()} == {key: value for value, key in CHANGES.values()}
        assert after["jobQueueStatus"]["remainingCapacity"] == 5
        assert (after["minWorkers"], after["maxWorkers"]) == (2, 2)
        assert {row["pid"] for row in after["workers"]} == {row["pid"] for row in before["workers"]}
        assert seen(rest, "POST", "/predictions/mirror")["parts"] == {"body": "hi"}

        both = rest.request("PUT", "/models/mirror?batch_size=2&min_worker=1&synchronous=true", port="management")
        assert both.sentence == "Workers scaled to 1 for model: mirror"
        [after] = rest.describe("mirror").json()
        assert (after["batchSize"], len(after["workers"])) == (2, 1)


@pytest.mark.parametrize(
    ("query", "word"), [("batch_size=0", "batch_size"), ("batch_wait=soon", "batch_wait"), ("job_queue_size=x", "job")]
)
def test_a_setting_that_will_not_do_changes_nothing(daemon: Daemon, query: str, word: str) -> None:
    rest = RestSurface(daemon)
    before = rest.describe("mirror").json()
    refused = rest.request("PUT", f"/models/mirror?{query}", port="management").error
    assert refused is not None
    assert refused.code == 400
    assert word in refused.message
    assert rest.describe("mirror").json()[0]["batchSize"] == before[0]["batchSize"]


def test_open_inference_is_there_under_torchserves_name_too(daemon: Daemon) -> None:
    """Reference section 1.1: the same messages, another package."""
    pb = import_module("torchd_protos.open_inference_pb2")
    with open_channel(daemon, "grpc_inference") as channel:
        path = "/org.pytorch.serve.grpc.openinference.GRPCInferenceService"
        ready = channel.unary_unary(
            f"{path}/ModelReady",
            request_serializer=pb.ModelReadyRequest.SerializeToString,
            response_deserializer=pb.ModelReadyResponse.FromString,
        )
        assert ready(pb.ModelReadyRequest(name="mirror"), timeout=30).ready
        with pytest.raises(grpc.RpcError) as missing:
            ready(pb.ModelReadyRequest(name="nobody"), timeout=30)
        assert missing.value.code() is grpc.StatusCode.NOT_FOUND


def test_one_address_serves_two_apis(tmp_path: Path) -> None:
    """Reference section 2.1, as SageMaker and KServe configure it."""
    store = tmp_path / "store"
    model = pack_mirror(store)
    daemon = Daemon(tmp_path, store=store, models=(model,), command="torchserve", arguments=["--enable-model-api"])
    config = tmp_path / "config.properties"
    lines = config.read_text().replace(f":{daemon.ports[1]}", f":{daemon.ports[0]}")
    config.write_text(lines)
    daemon.run_dir = tmp_path / "torchd" / str(daemon.ports[0])
    with daemon:
        rest = RestSurface(daemon)
        assert daemon.addresses["inference"] == daemon.addresses["management"]
        for port in ("inference", "management"):
            assert rest.request("GET", "/models", port=port).json()["models"]
            assert seen(rest, "POST", "/predictions/mirror")["parts"] == {"body": "hi"}
        paths = rest.request("OPTIONS", "/").json()["paths"]
        assert {"/models", "/predictions/{model_name}"} <= set(paths)
