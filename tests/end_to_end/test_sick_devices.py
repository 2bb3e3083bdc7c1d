"""Memory that runs out and devices that are lost, as clients see them; torch's own error types, raised on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faults.arena import Client
from harness.archives import pack_model
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.surfaces import SURFACES, Answer, GrpcSurface

pytest.importorskip("torch")
MODEL = "sick_device"


@contextmanager
def serving(folder: Path, surface: str = "grpc", ready: int = 1, **settings: Any) -> Iterator[tuple[Daemon, Client]]:
    """A daemon of which so many workers are ready, and a client of it."""
    entry = pack_model(folder, MODEL, **{"minWorkers": 1, "maxWorkers": 1, "deviceType": "cpu", **settings})
    with Daemon(folder, store=folder / "store", models=(entry,)) as daemon, SURFACES[surface](daemon) as client:
        eventually(lambda: len(ready_workers(client)) >= ready)
        yield daemon, client


def ready_workers(client: Client) -> list[dict[str, Any]]:
    [description] = client.describe(MODEL).json()
    return [worker for worker in description["workers"] if worker["status"] == "READY"]


def reason(answer: Answer) -> tuple[str | int, str]:
    assert answer.error is not None
    return answer.error.code, answer.error.reason


@pytest.mark.parametrize("act", [b"device memory", b"driver memory", b"host memory", b"python memory"])
def test_out_of_memory_is_typed_and_the_worker_goes_on(tmp_path: Path, surface: str, act: bytes) -> None:
    """G01, W09: TorchServe looks for the text CUDA; 507 is its answer."""
    with serving(tmp_path, surface) as (_, client):
        before = client.predict(MODEL, b"who").body
        code = {"grpc": "RESOURCE_EXHAUSTED", "rest": 507}[surface]
        assert reason(client.predict(MODEL, act)) == (code, "OUT_OF_MEMORY")
        assert client.predict(MODEL, b"who").body == before


def test_a_lost_device_is_typed_and_another_worker_comes_up(tmp_path: Path, surface: str) -> None:
    """G02."""
    with serving(tmp_path, surface) as (daemon, client):
        before = client.predict(MODEL, b"who").body
        code = {"grpc": "UNAVAILABLE", "rest": 507}[surface]
        assert reason(client.predict(MODEL, b"assert")) == (code, "DEVICE_LOST")
        assert client.predict(MODEL, b"who").body != before
        with GrpcSurface(daemon) as observer:
            request = observer.management_messages.DescribeModelRequest(model_name=MODEL)
            [description] = observer.management.DescribeModel(request, timeout=60).models
        assert description.last_failure.kind == "DeviceLost"
        assert "device-side assert" in description.last_failure.message


def test_a_model_whose_second_worker_has_no_memory_serves_with_the_first(tmp_path: Path, surface: str) -> None:
    """L05: the last failure says why there is no second."""
    failing = {"failing_loads": list(range(1, 1000)), "counter": str(tmp_path / "load")}
    with serving(tmp_path, surface, minWorkers=2, maxWorkers=2, handler=failing) as (_, client):
        eventually(lambda: "lastFailure" in client.describe(MODEL).json()[0])
        [description] = client.describe(MODEL).json()
        assert [worker["status"] for worker in description["workers"]].count("READY") == 1
        assert description["lastFailure"]["kind"] == "LoadOutOfMemory"
        assert "CUDA out of memory" in description["lastFailure"]["message"]
        assert description["minWorkers"] == 2
        assert len({client.predict(MODEL, b"who").body for _ in range(5)}) == 1
        assert json.loads(client.predict(MODEL, b"who").body) == ready_workers(client)[0]["pid"]
