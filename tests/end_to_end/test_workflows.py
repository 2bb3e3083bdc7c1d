"""Workflows from their archives to their answers, over REST as TorchServe 0.12.0 has them and over gRPC."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import psutil
import pytest
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.surfaces import RestSurface, error_of, open_channel

from torchd_archiver.packing import PackRequest, pack
from torchd_archiver.war import WorkflowPackRequest
from torchd_archiver.war import pack as pack_workflow
from torchd_protos import workflow_pb2 as pb
from torchd_protos.workflow_pb2_grpc import WorkflowInferenceServiceStub, WorkflowManagementServiceStub

MODEL = '''\
import json, time


class Model:
    """Adds one; tells what it was given."""

    def initialize(self, context):
        self.ready = True

    def handle(self, data, context):
        return [self.one(row) for row in data]

    def one(self, row):
        given = row.get("body") or row.get("data")
        given = json.loads(bytes(given)) if isinstance(given, (bytes, bytearray)) else given
        if given.get("sleep"):
            print("begins to sleep", flush=True)
            time.sleep(given["sleep"])
        if given.get("fail"):
            raise ValueError("told to fail")
        return {"n": given["n"] + 1, "parts": sorted(row)}
'''
FUNCTIONS = """\
import json, time


def pre(data, context):
    if data is None:
        return None
    given = data[0].get("body") or data[0].get("data")
    return [given if isinstance(given, dict) else bytes(given)]


def join(data, context):
    if data is None:
        return None
    return [json.dumps({name: json.loads(bytes(value)) for name, value in data[0].items()}, sort_keys=True)]


def text(data, context):
    return None if data is None else ["not json" for _ in data]


flaky_calls = 0


def flaky(data, context):
    global flaky_calls
    if data is None:
        return None
    flaky_calls += 1
    if flaky_calls % 2:
        raise ValueError("the first try fails")
    return [json.dumps({"calls": flaky_calls})]
"""
SPECS = {
    "seq": "models:\n  a: {url: add.mar}\ndag:\n  pre: [a]\n  a: [join]\n",
    "par": "models:\n  a: {url: add.mar}\n  b: {url: add.mar}\ndag:\n  pre: [a, b]\n  a: [join]\n  b: [join]\n",
    "leaves": "models:\n  a: {url: add.mar}\n  b: {url: add.mar}\ndag:\n  pre: [a, b]\n",
    "one": "models:\n  a: {url: add.mar}\ndag:\n  a: []\n",
    "slow": "models:\n  timeout-ms: 500\n  a: {url: add.mar}\ndag:\n  pre: [a]\n",
    "patient": "models:\n  timeout-ms: 60000\n  a: {url: add.mar}\n  b: {url: add.mar}\ndag:\n  pre: [a, b]\n",
    "retry": "dag:\n  flaky: []\n",
    "hasty": "models:\n  retry-attempts: 0\ndag:\n  flaky: []\n",
    "textleaf": "models:\n  a: {url: add.mar}\ndag:\n  pre: [a, text]\n",
    "cycle": "models:\n  a: {url: add.mar}\ndag:\n  pre: [a]\n  a: [pre]\n",
    "missing": "models:\n  a: {url: add.mar}\n  b: {url: nothere.mar}\ndag:\n  a: [b]\n",
    "nofunction": "models:\n  a: {url: add.mar}\ndag:\n  a: [nowhere]\n",
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one model and every workflow above."""
    folder, sources = tmp_path / "store", tmp_path / "sources"
    folder.mkdir()
    sources.mkdir()
    (sources / "add.py").write_text(MODEL)
    (sources / "functions.py").write_text(FUNCTIONS)
    pack(PackRequest("add", "1.0", str(sources / "add.py"), export_path=folder))
    for name, text in SPECS.items():
        (sources / f"{name}.yaml").write_text(text)
        pack_workflow(WorkflowPackRequest(name, sources / f"{name}.yaml", sources / "functions.py", export_path=folder))
    return folder


@pytest.fixture
def daemon(tmp_path: Path, store: Path) -> Iterator[Daemon]:
    """The daemon over it."""
    with Daemon(tmp_path / "daemon", store=store) as daemon:
        yield daemon


@pytest.fixture
def rest(daemon: Daemon) -> RestSurface:
    """Its REST ports."""
    return RestSurface(daemon)


class Rpcs:
    """Its rpcs."""

    def __init__(self, daemon: Daemon) -> None:
        self._channels = [open_channel(daemon, name) for name in ("grpc_inference", "grpc_management")]
        self.inference = WorkflowInferenceServiceStub(self._channels[0])  # type: ignore[no-untyped-call]
        self.management = WorkflowManagementServiceStub(self._channels[1])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


@pytest.fixture
def rpcs(daemon: Daemon) -> Iterator[Rpcs]:
    """A client of the rpcs."""
    rpcs = Rpcs(daemon)
    yield rpcs
    rpcs.close()


def register(rest: RestSurface, name: str, **parameters: Any) -> Any:
    query = "&".join(f"{key}={value}" for key, value in {"url": f"{name}.war", **parameters}.items())
    return rest.request("POST", f"/workflows?{query}", port="management")


def predict(rest: RestSurface, name: str, headers: dict[str, str] | None = None, **body: Any) -> Any:
    return rest.request("POST", f"/wfpredict/{name}", json.dumps(body).encode(), headers or {})


def models(rest: RestSurface) -> set[str]:
    return {model["modelName"] for model in rest.models().json()["models"]}


def test_a_sequence_lives_its_whole_life(rest: RestSurface) -> None:
    """10.6: the sentences and documents of 0.12.0, recorded from it."""
    answer = register(rest, "seq")
    assert answer.json() == {"status": "Workflow seq has been registered and scaled successfully."}
    assert rest.request("GET", "/workflows", port="management").json() == {
        "workflows": [{"workflowName": "seq", "workflowUrl": "seq.war"}]
    }
    assert rest.request("GET", "/workflows/seq", port="management").json() == [
        {
            "workflowName": "seq",
            "workflowUrl": "seq.war",
            "minWorkers": 1,
            "maxWorkers": 1,
            "batchSize": 1,
            "maxBatchDelay": 50,
            "workflowDag": "{pre=[a], a=[join]}",
        }
    ]
    assert models(rest) == {"seq__a"}, "functions are not shown"

    answer = predict(rest, "seq", n=1)
    assert answer.json() == {"body": {"n": 2, "parts": ["body"]}}
    assert answer.headers["content-type"] == "application/json"
    assert predict(rest, "seq/extra", n=1).json() == answer.json()
    assert rest.request("GET", "/WFPREDICT/seq", b'{"n": 1}').json() == answer.json()

    answer = rest.request("DELETE", "/workflows/seq", port="management")
    assert answer.json() == {"status": 'Workflow "seq" unregistered'}
    assert models(rest) == set()
    gone = predict(rest, "seq", n=1).error
    assert (gone.code, gone.message, gone.reason) == (404, "Workflow not found: seq", "WORKFLOW_NOT_FOUND")


def test_parents_meet_in_a_join_and_several_leaves_in_one_object(rest: RestSurface) -> None:
    register(rest, "par", workflow_name="mine")
    register(rest, "leaves")
    assert predict(rest, "mine", n=1).json() == {
        "a": {"n": 2, "parts": ["body"]},
        "b": {"n": 2, "parts": ["body"]},
    }
    both = json.dumps({"a": {"n": 5, "parts": ["body"]}, "b": {"n": 5, "parts": ["body"]}}, indent=2)
    assert predict(rest, "leaves", n=4).body == f"{both}\n".encode()
    page = rest.request("GET", "/workflows?limit=1", port="management").json()
    assert (page["nextPageToken"], [row["workflowName"] for row in page["workflows"]]) == ("1", ["leaves"])


def test_a_failing_node_is_named_and_ends_the_call(rest: RestSurface) -> None:
    """Y01."""
    register(rest, "par")
    error = predict(rest, "par", n=1, fail=True).error
    assert (error.code, error.reason) == (500, "NODE_FAILED")
    assert error.message in ("Error executing a", "Error executing b")
    assert predict(rest, "par", n=1).json()["a"]["n"] == 2, "the next call finds its workers free"


def test_a_leaf_beside_others_must_be_json(rest: RestSurface) -> None:
    """Y01: the wrong type."""
    register(rest, "textleaf")
    error = predict(rest, "textleaf", n=1).error
    assert (error.code, error.message) == (500, "Error executing text")


def test_a_node_is_asked_again_as_often_as_its_specification_says(rest: RestSurface) -> None:
    register(rest, "retry")
    register(rest, "hasty")
    assert predict(rest, "retry").json() == {"calls": 2}
    error = predict(rest, "hasty").error
    assert (error.code, error.message) == (500, "Error executing flaky")
    assert predict(rest, "hasty").json() == {"calls": 2}


def test_a_slow_node_ends_with_its_own_time_or_the_clients(rest: RestSurface) -> None:
    """Y01."""
    register(rest, "slow")
    register(rest, "patient")
    started = time.monotonic()
    error = predict(rest, "slow", n=1, sleep=2).error
    assert (error.code, error.message, error.reason) == (500, "Error executing a", "NODE_TIMEOUT")
    assert predict(rest, "patient", {"Request-Timeout": "0.5"}, n=1, sleep=2).error.reason == "NODE_TIMEOUT"
    assert time.monotonic() - started < 10


def test_a_client_that_leaves_takes_every_node_with_it(daemon: Daemon, rest: RestSurface) -> None:
    """Y02: both of the nodes that run."""
    register(rest, "patient")
    connection = rest.connect("inference")
    connection.request("POST", "/wfpredict/patient", json.dumps({"n": 1, "sleep": 1.5}))
    eventually(lambda: daemon.log.count("begins to sleep") == 2)
    connection.close()
    eventually(lambda: outcomes(rest, "patient__a", "Cancelled") == outcomes(rest, "patient__b", "Cancelled") == 1)


def outcomes(rest: RestSurface, model: str, outcome: str) -> float:
    """How many requests of a model have ended so."""
    text = rest.request("GET", "/metrics", port="metrics").body.decode()
    lines = [line for line in text.splitlines() if f'model="{model}"' in line and f'outcome="{outcome}"' in line]
    return sum(float(line.split()[-1]) for line in lines if "_created" not in line)


def test_registration_is_all_or_nothing(rest: RestSurface, daemon: Daemon) -> None:
    """S52: nothing is left of a workflow one of whose nodes cannot be."""
    error = register(rest, "missing").error
    assert (error.code, error.reason) == (500, "WORKFLOW_NOT_REGISTERED")
    assert error.message.startswith(
        "Workflow missing has failed to register. "
        "Failures: [Workflow Node missing__b failed to register. Details: Model not found at: nothere.mar"
    )
    error = register(rest, "nofunction").error
    assert (error.code, error.reason) == (500, "WORKFLOW_NOT_REGISTERED")
    assert "nofunction__nowhere" in error.message
    assert models(rest) == set()
    assert rest.request("GET", "/workflows", port="management").json() == {"workflows": []}
    assert not daemon.children()
    assert not list((daemon.run_dir).rglob("functions.py")), "their folders have gone too"


REFUSED = {
    "cycle.war": (400, "InvalidDAGException", "DAG should have only one start node"),
    "nothere.war": (404, "WorkflowNotFoundException", "Workflow not found in workflow store: nothere.war"),
    "../x.war": (404, "ModelNotFoundException", "Relative path is not allowed in url: ../x.war"),
    "add.mar": (400, "InvalidDAGException", "WAR-INF/MANIFEST.json"),
    "": (400, "BadRequestException", "Parameter url is required."),
}


@pytest.mark.parametrize("url", REFUSED)
def test_what_is_no_workflow_is_refused(rest: RestSurface, url: str) -> None:
    """10.6, S52."""
    code, kind, sentence = REFUSED[url]
    connection = rest.connect("management")
    connection.request("POST", f"/workflows?url={url}")
    response = connection.getresponse()
    document = json.loads(response.read())
    connection.close()
    assert (document["code"], document["type"]) == (code, kind)
    assert sentence in document["message"]


def test_other_methods_and_paths_are_refused(rest: RestSurface) -> None:
    for method, path, code in (
        ("PUT", "/workflows/x", 405),
        ("DELETE", "/workflows", 405),
        ("GET", "/workflows/x", 404),
        ("DELETE", "/workflows/x", 404),
        ("GET", "/workflows/a/b", 404),
        ("GET", "/workflows?limit=x", 400),
    ):
        assert rest.request(method, path, port="management").error.code == code, (method, path)
    assert rest.request("POST", "/wfpredict").error.code == 404


def test_the_models_of_a_workflow_go_only_with_it(rest: RestSurface) -> None:
    """Y06, and two of one name."""
    register(rest, "seq")
    for answer in (
        rest.unregister("seq__a"),
        rest.unregister("seq__pre"),
        rest.register("add.mar", model_name="seq__a"),
        rest.register("add.mar", model_name="seq__pre"),
        register(rest, "seq"),
    ):
        assert answer.error is not None
        assert answer.error.code == 409
    assert answer.error.message == "Workflow seq is already registered."
    assert predict(rest, "seq", n=1).json()["body"]["n"] == 2
    rest.register("add.mar", model_name="leaves__a")
    assert "leaves__a" in register(rest, "leaves").error.message
    assert models(rest) == {"seq__a", "leaves__a"}, "another's model of that name stays, and is not taken over"


def test_a_running_call_is_answered_before_its_workflow_goes(daemon: Daemon, rest: RestSurface) -> None:
    register(rest, "patient")
    answers: list[Any] = []
    caller = Thread(target=lambda: answers.append(predict(rest, "patient", n=1, sleep=1)))
    caller.start()
    eventually(lambda: daemon.log.count("begins to sleep") == 2)
    assert rest.request("DELETE", "/workflows/patient", port="management").error is None
    caller.join()
    assert answers[0].json()["a"]["n"] == 2
    assert models(rest) == set()


def test_a_stopping_server_finishes_the_graph_it_has_begun(daemon: Daemon, rest: RestSurface) -> None:
    """The later nodes of a call that was let in are still asked."""
    register(rest, "seq")
    answers: list[Any] = []
    caller = Thread(target=lambda: answers.append(predict(rest, "seq", n=1, sleep=1)))
    caller.start()
    eventually(lambda: "begins to sleep" in daemon.log)
    assert daemon.stop() == 0
    caller.join()
    assert answers[0].json()["body"]["n"] == 2


def test_the_rpcs_are_the_same_use_cases(rest: RestSurface, rpcs: Rpcs) -> None:
    registered = rpcs.management.RegisterWorkflow(pb.RegisterWorkflowRequest(url="par.war"), timeout=60).workflow
    assert [(node.name, node.url, list(node.parents)) for node in registered.nodes] == [
        ("pre", "", []),
        ("a", "add.mar", ["pre"]),
        ("b", "add.mar", ["pre"]),
        ("join", "", ["a", "b"]),
    ]
    assert rest.request("GET", "/workflows/par", port="management").status == 200
    [listed] = rpcs.management.ListWorkflows(pb.ListWorkflowsRequest(), timeout=60).workflows
    described = rpcs.management.DescribeWorkflow(pb.DescribeWorkflowRequest(workflow_name="par"), timeout=60)
    assert listed == described.workflow == registered
    request = pb.WorkflowPredictionsRequest(workflow_name="par", input={"data": b'{"n": 1}'})
    answer = rpcs.inference.WorkflowPredictions(request, timeout=60).prediction
    assert json.loads(answer)["b"]["n"] == 2
    rpcs.management.UnregisterWorkflow(pb.UnregisterWorkflowRequest(workflow_name="par"), timeout=60)
    with pytest.raises(grpc.RpcError) as gone:
        rpcs.inference.WorkflowPredictions(request, timeout=60)
    assert (error_of(gone.value).code, error_of(gone.value).reason) == ("NOT_FOUND", "WORKFLOW_NOT_FOUND")


def test_an_rpc_of_a_failing_node_names_it(rest: RestSurface, rpcs: Rpcs) -> None:
    """Y01, Y02: a deadline and a cancel end every node."""
    register(rest, "patient")

    def call(**body: Any) -> pb.WorkflowPredictionsRequest:
        return pb.WorkflowPredictionsRequest(workflow_name="patient", input={"data": json.dumps(body).encode()})

    with pytest.raises(grpc.RpcError) as failed:
        rpcs.inference.WorkflowPredictions(call(n=1, fail=True), timeout=60)
    error = error_of(failed.value)
    assert (error.code, error.reason) == ("UNKNOWN", "NODE_FAILED")
    assert error.message.startswith("Error executing")
    with pytest.raises(grpc.RpcError) as late:
        rpcs.inference.WorkflowPredictions(call(n=1, sleep=2), timeout=0.5)
    assert error_of(late.value).code == "DEADLINE_EXCEEDED"
    with pytest.raises(grpc.RpcError) as unnamed:
        rpcs.inference.WorkflowPredictions(pb.WorkflowPredictionsRequest(), timeout=60)
    assert error_of(unnamed.value).code == "INVALID_ARGUMENT"


def test_failing_calls_leave_nothing_behind(rest: RestSurface, daemon: Daemon) -> None:
    """Y03: TorchServe leaked four threads each."""
    register(rest, "hasty")
    register(rest, "leaves")
    for _ in range(5):
        predict(rest, "leaves", n=1, fail=True)
    process = psutil.Process(daemon.pid)
    before = process.num_threads(), process.num_fds()
    for _ in range(200):
        assert predict(rest, "leaves", n=1, fail=True).error.reason == "NODE_FAILED"
    after = process.num_threads(), process.num_fds()
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1] + 5
