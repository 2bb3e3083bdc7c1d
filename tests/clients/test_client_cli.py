"""The client's commands as a person types them, against a real server."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer
from clients.fake_server import FakeServer, status
from typer.testing import CliRunner

from torchd_clients.cli import add_commands
from torchd_protos.management_pb2 import (
    AbsentAccelerator,
    DeviceDescription,
    DeviceHolder,
    FailureDescription,
    ListDevicesResponse,
    ModelDescription,
    ModelState,
    OutputDifference,
    WorkerDescription,
    WorkerState,
)

Run = Callable[..., Any]


@pytest.fixture
def run(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `torchd <arguments>`; `server` is the daemon it finds by itself."""
    folder = tmp_path / "torchd" / "7071"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    told = {"pid": os.getpid(), "grpc_inference": server.address, "grpc_management": server.address}
    (folder / "daemon.json").write_text(json.dumps(told))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    add_commands(app)
    return lambda *arguments, **rest: CliRunner().invoke(app, [str(argument) for argument in arguments], **rest)


@pytest.fixture
def described() -> ModelDescription:
    ready, dead = WorkerState.WORKER_STATE_READY, WorkerState.WORKER_STATE_BACK_OFF
    return ModelDescription(
        model_name="bert",
        model_version="1.0",
        is_default=True,
        state=ModelState.MODEL_STATE_READY,
        min_workers=2,
        max_workers=3,
        batch_size=4,
        pending_requests=5,
        remaining_capacity=95,
        workers=[
            WorkerDescription(id="9000", state=ready, pid=4711, memory_usage=64 * 2**20),
            WorkerDescription(id="9001", state=dead),
        ],
        last_failure=FailureDescription(
            worker_id="9001",
            time="2026-01-02T03:04:05Z",
            kind="LoadFailed",
            message="no [bold]weights\x1b]0;gotcha\x07",
            traceback='Traceback\n  File "handler.py", line 3\n',
            stderr=["warning: old"],
        ),
    )


def test_predict_sends_a_file_and_prints_the_answer_as_it_is(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"\x00\xfe\n")
    result = run("predict", "echo", "-T", "in")
    assert (result.exit_code, result.stdout_bytes) == (0, b"data=\x00\xfe\n")


def test_predict_reads_standard_input(run: Run) -> None:
    assert run("predict", "echo", "-T", "-", input=b"piped").stdout_bytes == b"data=piped"


def test_predict_sends_several_files_as_named_parts(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "x=y").write_text("2")
    assert run("predict", "echo", "-T", "first=a", "-T", "second=x=y").stdout == "first=1&second=2"
    assert run("predict", "echo", "-T", "./x=y").stdout == "data=2"


def test_predict_passes_version_and_timeout(run: Run, server: FakeServer) -> None:
    run("predict", "echo", "-T", "-", "--version", "2.0", "--timeout", "30", input=b"")
    (call,) = server.received
    assert call.request.model_version == "2.0"
    assert round(call.remaining, -1) == 30


def test_predict_streams(run: Run) -> None:
    assert run("predict", "m", "-T", "-", "--stream", input=b"").stdout == "firstsecond"


def test_predict_prints_each_answer_as_a_line_of_json(run: Run) -> None:
    lines = run("predict", "m", "-T", "-", "--stream", "--json", input=b"").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [{"prediction": "first"}, {"prediction": "second"}]
    binary = run("predict", "echo", "-T", "-", "--json", input=b"\xff").stdout
    assert json.loads(binary) == {"prediction_base64": "ZGF0YT3/"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-T", "missing"], "cannot use missing: No such file or directory"),
        (["-T", "a", "-T", "b"], "2 files are 2 parts: give each a name of its own, -T NAME=FILE"),
        (["-T", "n=a", "-T", "n=b"], "2 files are 2 parts: give each a name of its own, -T NAME=FILE"),
    ],
)
def test_predict_says_what_is_wrong_with_its_files(run: Run, arguments: list[str], said: str) -> None:
    result = run("predict", "echo", *arguments)
    assert (result.exit_code, result.stderr, result.stdout) == (1, said + "\n", "")


def test_models_shows_a_row_for_each_version(run: Run, server: FakeServer, described: ModelDescription) -> None:
    second = ModelDescription(model_name="bert", model_version="2.0", state=ModelState.MODEL_STATE_IDLE)
    server.models = {"bert": [described, second], "gone": []}
    result = run("models")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert result.exit_code == 0
    assert [row[:7] for row in rows] == [
        ["bert", "1.0", "yes", "ready", "1/2", "4", "5/100"],
        ["bert", "2.0", "", "idle", "0/0", "0", "0/0"],
    ]
    assert rows[0][7].startswith("LoadFailed: no [bold]weights")


def test_describe_tells_what_optimize_did(run: Run, server: FakeServer, described: ModelDescription) -> None:
    found = OutputDifference(
        inputs=20, max_difference=0.01, standard_deviation=0.5, ratio=0.02, equal_top1=0.95, top1_judged=False
    )
    described.optimization.options.add(name="dtype", asked="bf16", applied=True, detail="layers", difference=found)
    described.optimization.options.add(name="channels_last", asked="true", applied=False, detail="no images\x1b[2J")
    described.optimization.warnings.append("bfloat16 is slow here")
    described.optimization.unchecked = "no samples"
    server.models = {"bert": [described]}
    shown = run("describe", "bert").stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert ["dtype", "bf16", "yes", "layers", "0.01 / 0.5 = 0.02", "95.0% (of 20: not judged)"] in rows
    assert ["channels_last", "true", "no", "no images\N{REPLACEMENT CHARACTER}[2J", "", ""] in rows
    assert "warning: bfloat16 is slow here\nanswers not checked: no samples\n" in shown
    del described.optimization.warnings[:]
    described.ClearField("optimization")
    server.models = {"bert": [described]}
    assert "not checked" not in run("describe", "bert").stdout


def test_models_as_json_has_every_field(run: Run, server: FakeServer, described: ModelDescription) -> None:
    server.models = {"bert": [described]}
    (model,) = json.loads(run("models", "--json").stdout)
    assert (model["model_name"], model["min_workers"], model["response_timeout"]) == ("bert", 2, 0)
    assert model["workers"][0]["state"] == "WORKER_STATE_READY"


def test_describe_shows_workers_and_the_traceback(run: Run, server: FakeServer, described: ModelDescription) -> None:
    server.models = {"bert": [described]}
    shown = run("describe", "bert").stdout
    for text in ("1/2 ready (at most 3)", "4711", "64 MiB", "back off", 'File "handler.py", line 3', "warning: old"):
        assert text in shown
    assert json.loads(run("describe", "bert", "--json").stdout)[0]["last_failure"]["kind"] == "LoadFailed"


def test_describe_shows_the_processes_of_a_worker_that_has_several(
    run: Run, server: FakeServer, described: ModelDescription
) -> None:
    loading = WorkerState.WORKER_STATE_LOADING
    described.workers[0].ranks.add(rank=0, pid=4711, state=WorkerState.WORKER_STATE_READY)
    server.models = {"bert": [described]}
    assert "rank 0" not in run("describe", "bert").stdout
    described.workers[0].ranks.add(rank=1, pid=4712, state=loading, progress="7 % weights").devices.add(
        device_type="gpu", index=3
    )
    [row] = [line for line in run("describe", "bert").stdout.splitlines() if "rank 1" in line]
    for text in ("4712", "loading", "gpu 3", "7 % weights"):
        assert text in row


def test_devices_shows_who_holds_which_and_why_there_are_no_others(run: Run, server: FakeServer) -> None:
    gpu = {"device_type": "gpu", "accelerator": "cuda", "name": "NVIDIA H200", "memory_size": 141 << 30}
    held = [
        DeviceHolder(model_name="bert", model_version="1.0", worker_id="4", pid=99),
        {"model_name": "x\x1b", "model_version": "2"},
    ]
    core = {"device_type": "cpu", "accelerator": "cpu", "name": "CPU core", "numa_node": 0}
    server.devices = ListDevicesResponse(
        devices=[
            DeviceDescription(index=0, id="0", holders=held, **gpu),
            DeviceDescription(index=1, id="MIG-a", quarantined=True, **gpu),
            *(DeviceDescription(index=index, id=str(index + 4), **core) for index in range(3)),
            DeviceDescription(index=3, id="7", holders=held[:1], **core),
        ],
        absent=[AbsentAccelerator(accelerator="neuron", reason="neuron-ls is not on PATH")],
    )
    shown = run("devices").stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert rows == [
        [
            "gpu 0",
            "0",
            "NVIDIA H200",
            "141 GiB",
            "",
            "bert/1.0 worker 4 (pid 99), x\N{REPLACEMENT CHARACTER}/2 starting",
        ],
        ["gpu 1", "MIG-a", "NVIDIA H200", "141 GiB", "", "(quarantined: its process could not be ended)"],
        ["cpu 0-2", "4-6", "CPU core", "", "0", ""],
        ["cpu 3", "7", "CPU core", "", "0", "bert/1.0 worker 4 (pid 99)"],
    ]
    assert shown.endswith("no neuron: neuron-ls is not on PATH\n")
    (document,) = json.loads(run("devices", "--json").stdout)
    assert (len(document["devices"]), document["absent"][0]["accelerator"]) == (6, "neuron")


def test_what_a_model_says_cannot_steer_the_terminal(run: Run, server: FakeServer, described: ModelDescription) -> None:
    server.models = {"bert": [described]}
    for command in (["models"], ["describe", "bert"]):
        shown = run(*command).stdout
        assert "no [bold]weights" in shown
        assert not {"\x1b", "\x07"} & set(shown)
    server.failure = status(grpc.StatusCode.UNKNOWN, "HANDLER_ERROR", "bad \x1b[31mred")
    assert "\x1b" not in run("describe", "bert").stderr


def test_a_state_of_a_later_daemon_is_shown_as_its_number(run: Run, server: FakeServer) -> None:
    server.models = {"bert": [ModelDescription(model_name="bert", state=99)]}  # type: ignore[arg-type]
    assert "99" in run("models").stdout


def test_register_sends_its_options_and_says_what_came_of_it(run: Run, server: FakeServer) -> None:
    options = ["--name", "b", "--workers", "2", "--batch-size", "4", "--max-batch-delay", "20", "--handler", "h"]
    result = run("register", "bert.mar", *options, "--response-timeout", "7", "--startup-timeout", "9", "--no-wait")
    assert result.stdout == "registered b 1.0: 2 of 2 workers ready, still going on\n"
    assert {field.name: value for field, value in server.received[0].request.ListFields()} == {
        "url": "bert.mar",
        "model_name": "b",
        "initial_workers": 2,
        "batch_size": 4,
        "max_batch_delay": 20,
        "handler": "h",
        "response_timeout": 7,
        "startup_timeout": 9,
    }


def test_scale_to_zero_is_sent_as_zero(run: Run, server: FakeServer) -> None:
    assert run("scale", "bert", "0").stdout == "scaled bert 1.0: 0 of 0 workers ready\n"
    assert server.received[0].request.HasField("min_worker")


def test_set_default_and_unregister_name_the_version(run: Run) -> None:
    assert run("set-default", "bert", "2.0").stdout == "2.0 is now the default version of bert\n"
    assert run("unregister", "bert", "--version", "1.0").stdout == "unregistered bert 1.0\n"


def test_ping_fails_where_a_worker_is_missing(run: Run, server: FakeServer) -> None:
    assert (run("ping").exit_code, run("ping").stdout) == (0, "Healthy\n")
    server.health = "Unhealthy"
    assert (run("ping").exit_code, run("ping").stdout) == (1, "Unhealthy\n")


def test_an_error_is_two_lines_and_no_traceback(run: Run, server: FakeServer) -> None:
    server.failure = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "the queue of 'bert' is full", 0.5)
    result = run("predict", "bert", "-T", "-", input=b"")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "the queue of 'bert' is full",
        f"(QUEUE_FULL from {server.address}) `torchd scale MODEL N` adds workers. Try again in 0.5 s.",
    ]


def test_without_a_daemon_the_error_says_how_to_start_one(run: Run, free_address: str) -> None:
    result = run("models", "--grpc-management", free_address)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert f"no daemon answers at {free_address}" in result.stderr
    assert "torchd serve" in result.stderr


def test_an_address_that_is_given_wins_over_the_daemon_found(run: Run, server: FakeServer) -> None:
    other = FakeServer()
    assert run("ping", "--grpc-inference", other.address).exit_code == 0
    assert ([call.method for call in other.received], server.received) == (["Ping"], [])
    other.stop()
