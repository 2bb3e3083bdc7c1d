"""Devices with real processes on a machine that has none: tools that stand in for the drivers' say what there is.

Seed 001 (one worker for each NeuronCore, refusal of one too many), seed 002 (GPUs), field.md 37 to 39.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness.archives import MODELS, pack_model
from harness.daemon import Daemon
from harness.device_tools import NEW, gpu_rows, neuron_devices, write_neuron_ls, write_nvidia_smi, write_tool
from harness.eventually import eventually
from harness.surfaces import SURFACES, GrpcSurface, RestSurface, Surface

from torchd_archiver.packing import PackRequest, pack
from torchd_server.accelerators.cpu import usable_cores

CORES = 24
REFUSED = {"grpc": "RESOURCE_EXHAUSTED", "rest": 409}


@contextmanager
def serving(
    folder: Path, workers: int, *, command: str = "torchd", variables: dict[str, str] | None = None, **settings: Any
) -> Iterator[Daemon]:
    """A daemon with the tools of `folder`/tools on its PATH, which serves the model `devices`."""
    settings = {"minWorkers": workers, "maxWorkers": workers, **settings}
    models = [pack_model(folder, "devices", **settings)]
    with daemon_of(folder, models, command=command, variables=variables) as daemon:
        with GrpcSurface(daemon) as client:
            wait_ready(client, "devices", workers)
        yield daemon


def daemon_of(folder: Path, models: list[str], **options: Any) -> Daemon:
    path = os.pathsep.join([str(folder / "tools"), os.environ["PATH"]])
    options["variables"] = {"PATH": path, **(options.get("variables") or {})}
    return Daemon(folder, store=folder / "store", models=models, **options)


def wait_ready(client: Surface, model: str, workers: int) -> list[dict[str, Any]]:
    def ready() -> list[dict[str, Any]]:
        [found] = client.describe(model).json()
        alive = [worker for worker in found["workers"] if worker["status"] == "READY"]
        return alive if len(alive) == workers else []

    return eventually(ready, within=120)


def seen(client: Surface, model: str, workers: int) -> dict[int, dict[str, Any]]:
    """What each worker says of itself, by its pid: asked until every one has answered."""
    found: dict[int, dict[str, Any]] = {}

    def asked() -> bool:
        answer = client.predict(model, b"?").json()
        found[answer["pid"]] = answer
        return len(found) == workers

    eventually(asked, within=60)
    return found


def started(client: Surface, workers: int) -> list[str]:
    """NEURON_RT_VISIBLE_CORES of each ready worker's process, as the kernel has it: none has to be asked."""
    found = [variables(worker["pid"]) for worker in wait_ready(client, "devices", workers)]
    return sorted(found, key=lambda said: int(said.split("-")[0]))


def test_24_workers_have_24_cores_and_there_is_no_25th(tmp_path: Path) -> None:
    """Seed 001's warning, kept: workers = NeuronCores, and one more is refused with the numbers on both surfaces."""
    write_neuron_ls(tmp_path / "tools", neuron_devices(CORES // 2, instance_type="inf2.48xlarge"))
    operator = {"NEURON_RT_NUM_CORES": str(CORES)}  # E16: the operator's own variables do not reach over a lease
    with serving(tmp_path, CORES, deviceType="neuron", variables=operator) as daemon:
        with GrpcSurface(daemon) as grpc, RestSurface(daemon) as rest:
            workers = seen(grpc, "devices", 3)
            assert {worker["NEURON_RT_NUM_CORES"] for worker in workers.values()} == {"1"}
            assert {worker["gpu_id"] for worker in workers.values()} == {None}
            assert started(grpc, CORES) == [str(core) for core in range(CORES)]
            before = {worker["pid"] for worker in wait_ready(grpc, "devices", CORES)}
            for client in (grpc, rest):
                error = client.scale("devices", CORES + 1).error
                assert error is not None
                assert error.code == REFUSED[client.name]
                assert error.reason == "NOT_ENOUGH_DEVICES"
                assert error.message == (
                    "model 'devices' asks for 25 NeuronCores (25 workers with 1 each); this machine has 24 and 0 are "
                    "free (model 'devices' version 1.0 holds 24); scale to at most 24 workers"
                )
                [model] = client.describe("devices").json()
                assert (model["minWorkers"], model["maxWorkers"], model["deviceType"]) == (CORES, CORES, "neuron")
            assert {worker["pid"] for worker in wait_ready(grpc, "devices", CORES)} == before
            _says_the_same_as_its_processes(rest, before)


def _says_the_same_as_its_processes(rest: RestSurface, pids: set[int]) -> None:
    listed = rest.request("GET", "/devices", port="management").json()
    cores = [device for device in listed["devices"] if device["deviceType"] == "neuron"]
    assert [device["id"] for device in cores] == [str(core) for core in range(CORES)]
    assert {device["name"] for device in cores} == {"NeuronCore of inf2.48xlarge"}
    for device in cores:
        [holder] = device["holders"]
        assert variables(holder["pid"]) == device["id"]
    assert {device["holders"][0]["pid"] for device in cores} == pids
    absent = {kind["accelerator"]: kind["reason"] for kind in listed["absent"]}
    assert absent["cuda"] == "nvidia-smi is not on PATH and there is no /dev/nvidia0"


def test_a_killed_worker_comes_back_on_its_core(tmp_path: Path) -> None:
    """G05; and whoever is scaled away gives his core back."""
    write_neuron_ls(tmp_path / "tools", neuron_devices(2))
    with serving(tmp_path, 4) as daemon, GrpcSurface(daemon) as client:
        assert started(client, 4) == ["0", "1", "2", "3"]
        victim = next(worker for worker in wait_ready(client, "devices", 4) if worker["devices"][0]["id"] == "2")
        os.kill(victim["pid"], signal.SIGKILL)
        eventually(lambda: victim["pid"] not in pids_of(client))
        assert started(client, 4) == ["0", "1", "2", "3"]
        assert client.scale("devices", 2).error is None
        assert started(client, 2) == ["0", "1"]
        # At once, while the two are still leaving.
        for workers in (0, 4, 1, 3):
            assert client.scale("devices", workers, synchronous=False).error is None
        assert len(set(started(client, 3))) == 3
        assert client.scale("devices", 4).error is None
        assert started(client, 4) == ["0", "1", "2", "3"]


def pids_of(client: Surface) -> set[int]:
    [model] = client.describe("devices").json()
    return {worker["pid"] for worker in model["workers"]}


def test_two_models_share_the_machine_but_no_core(tmp_path: Path, surface: str) -> None:
    """What does not fit beside the first is refused and leaves nothing behind; when there is room it fits."""
    write_neuron_ls(tmp_path / "tools", neuron_devices(4))
    with serving(tmp_path, 6) as daemon, SURFACES[surface](daemon) as client:
        error = client.register("devices.mar", model_name="second", initial_workers=3).error
        # The archive names its number of workers, which stands above the call's.
        assert error is not None
        assert error.code == REFUSED[surface]
        assert error.message == (
            "model 'second' asks for 6 NeuronCores (6 workers with 1 each); this machine has 8 and 2 are free "
            "(model 'devices' version 1.0 holds 6); scale to at most 2 workers"
        )
        assert [model["modelName"] for model in client.models().json()["models"]] == ["devices"]
        assert client.scale("devices", 2).error is None
        assert client.register("devices.mar", model_name="second").error is None
        both = [*seen(client, "devices", 2).values(), *seen(client, "second", 6).values()]
        assert sorted(worker["NEURON_RT_VISIBLE_CORES"] for worker in both) == [str(core) for core in range(8)]
        assert client.unregister("second").error is None
        assert client.scale("devices", 8).error is None


def test_workers_of_several_cores_have_aligned_ranges(tmp_path: Path) -> None:
    write_neuron_ls(tmp_path / "tools", neuron_devices(12))
    with serving(tmp_path, 2, coresPerWorker=4) as daemon, GrpcSurface(daemon) as client:
        assert started(client, 2) == ["0-3", "4-7"]
        assert {worker["NEURON_RT_NUM_CORES"] for worker in seen(client, "devices", 2).values()} == {"4"}
        error = client.scale("devices", 7).error
        assert error is not None
        assert "asks for 28 NeuronCores (7 workers with 4 each)" in error.message
        assert error.message.endswith("scale to at most 6 workers")
        assert client.scale("devices", 6).error is None
        assert started(client, 6) == ["0-3", "4-7", "8-11", "12-15", "16-19", "20-23"]


def test_each_rank_of_a_group_has_its_own_cores(tmp_path: Path) -> None:
    """Tensor-parallel workers: a range for each rank, those of a worker side by side."""
    write_neuron_ls(tmp_path / "tools", neuron_devices(4))
    group = {"parallelType": "tp", "parallelLevel": 2, "coresPerWorker": 2}
    with serving(tmp_path, 2, **group) as daemon, GrpcSurface(daemon) as client:
        workers = wait_ready(client, "devices", 2)
        found = [[(rank["rank"], variables(rank["pid"])) for rank in worker["ranks"]] for worker in workers]
        assert found == [[(0, "0-1"), (1, "2-3")], [(0, "4-5"), (1, "6-7")]]
        assert [[device["id"] for device in rank["devices"]] for rank in workers[1]["ranks"]] == [
            ["4", "5"],
            ["6", "7"],
        ]
        error = client.scale("devices", 3).error
        assert error is not None
        assert "asks for 12 NeuronCores (3 workers with 4 each)" in error.message


def variables(pid: int) -> str:
    return psutil.Process(pid).environ()["NEURON_RT_VISIBLE_CORES"]


def test_workers_that_pin_cores_have_them_to_themselves(tmp_path: Path) -> None:
    """field.md 38: a core set by option, as many threads as it has cores."""
    cores = usable_cores()
    with serving(tmp_path, cores, coresPerWorker=1) as daemon, RestSurface(daemon) as client:
        pinned = sorted(worker["affinity"] for worker in seen(client, "devices", cores).values())
        assert len({core for [core] in pinned}) == cores
        [model] = client.describe("devices").json()
        assert {(worker["threads"], worker["devices"][0]["deviceType"]) for worker in model["workers"]} == {(1, "cpu")}
        error = client.scale("devices", cores + 1).error
        assert error is not None
        assert f"asks for {cores + 1} CPU cores" in error.message


def test_a_model_of_the_start_that_does_not_fit_is_logged_and_the_others_go_on(tmp_path: Path) -> None:
    write_neuron_ls(tmp_path / "tools", neuron_devices(1))
    pack_model(tmp_path, "devices", minWorkers=2, maxWorkers=2)
    echo = pack_model(tmp_path, "echo", minWorkers=1, maxWorkers=1, deviceType="cpu")
    with daemon_of(tmp_path, ["first=devices.mar", "second=devices.mar", echo]) as daemon:
        with GrpcSurface(daemon) as client:
            wait_ready(client, "first", 2)
            wait_ready(client, "echo", 1)
            assert [model["modelName"] for model in client.models().json()["models"]] == ["echo", "first"]
        assert (
            "model second=devices.mar of the command line was not registered: model 'second' asks for 2" in daemon.log
        )


def test_torchserve_starts_a_worker_for_each_core_that_is_free(tmp_path: Path) -> None:
    """default_workers_per_model: where nobody named a number, a second model takes what the first left."""
    write_neuron_ls(tmp_path / "tools", neuron_devices(2))
    model = pack_model(tmp_path, "devices")
    with daemon_of(tmp_path, [model], command="torchserve") as daemon, GrpcSurface(daemon) as client:
        assert started(client, 4) == ["0", "1", "2", "3"]


def test_each_gpu_worker_sees_one_gpu_and_calls_it_0(tmp_path: Path) -> None:
    """field.md 37: the least lent GPU first, visible before the interpreter starts; the ledger shows who has which."""
    write_nvidia_smi(tmp_path / "tools", gpu_rows(8))
    operator = {"CUDA_VISIBLE_DEVICES": "1,2,3,4,5,6,7,0"}
    with serving(tmp_path, 9, variables=operator, deviceIds=[7, 0, 1, 2]) as daemon, GrpcSurface(daemon) as client:
        workers = seen(client, "devices", 9)
        visible = sorted(worker["CUDA_VISIBLE_DEVICES"] for worker in workers.values())
        assert visible == ["0", "0", "0", "1", "1", "2", "2", "3", "3"]  # 7 of the operator's list is GPU 0
        assert {(worker["gpu_id"], worker["CUDA_DEVICE_ORDER"]) for worker in workers.values()} == {(0, "PCI_BUS_ID")}
        [model] = client.describe("devices").json()
        assert model["deviceType"] == "gpu"
        for worker in model["workers"]:
            [device] = worker["devices"]
            assert device["id"] == workers[worker["pid"]]["CUDA_VISIBLE_DEVICES"]
            assert (worker["gpu"], worker["gpuUsage"]) == (True, f"gpuId::{device['index']}")
        shown = torchd(daemon, "devices")
        rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
        assert [row[:4] for row in rows if row[0].startswith("gpu")] == [
            [f"gpu {index}", name, "NVIDIA H200", "140 GiB"] for index, name in enumerate("12345670")
        ]
        held = [worker["pid"] for worker in workers.values() if worker["CUDA_VISIBLE_DEVICES"] == "0"]
        [last] = [row for row in rows if row[0] == "gpu 7"]
        assert all(f"(pid {pid})" in last[5] for pid in held)
        assert "no neuron: neuron-ls is not on PATH and there is no /dev/neuron0" in shown
        [document] = json.loads(torchd(daemon, "devices", "--json"))
        assert [len(device["holders"]) for device in document["devices"][:8]] == [2, 2, 2, 0, 0, 0, 0, 3]
        # A worker that was lent no GPU sees none.
        assert client.register(pack_cpu(tmp_path), model_name="plain").error is None
        [plain] = seen(client, "plain", 1).values()
        assert (plain["CUDA_VISIBLE_DEVICES"], plain["gpu_id"]) == ("", None)


def pack_cpu(folder: Path) -> str:
    """The model's archive in its place, for the processor."""
    (folder / "store" / "devices.mar").unlink()
    pack_model(folder, "devices", deviceType="cpu", minWorkers=1, maxWorkers=1)
    return "devices.mar"


def torchd(daemon: Daemon, *arguments: str) -> str:
    """What a user of this daemon sees."""
    command = [str(daemon.commands / "torchd"), *arguments, "--grpc-management", daemon.addresses["grpc_management"]]
    done = subprocess.run(
        command, env=daemon.environment, cwd=daemon.folder, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


@pytest.mark.parametrize("script", ["sleep 300", "echo {", "exit 1"])
def test_a_driver_that_does_not_answer_leaves_models_of_the_processor_alone(tmp_path: Path, script: str) -> None:
    """G03: FAILED with a reason, CPU models live."""
    write_tool(tmp_path / "tools", "nvidia-smi", "exit 9")
    write_tool(tmp_path / "tools", "neuron-ls", script)
    with serving(tmp_path, 1) as daemon, RestSurface(daemon) as client:
        [worker] = seen(client, "devices", 1).values()
        assert worker["NEURON_RT_VISIBLE_CORES"] is None
        listed = client.request("GET", "/devices", port="management").json()
        absent = {kind["accelerator"]: kind["reason"] for kind in listed["absent"]}
        assert absent["cuda"] == "nvidia-smi left with status 9 and there is no /dev/nvidia0"
        assert absent["neuron"].startswith("neuron-ls ")


def test_the_tutorials_registration_has_a_core_for_each_worker_or_is_refused(tmp_path: Path) -> None:
    """docs/neuron.md, "Register", on an inf2.xlarge: seed 001's model name, calls and warning; no 409 afterwards."""
    name = "bert-max_length128-batch_size6"
    write_neuron_ls(tmp_path / "tools", {"instance_type": "inf2.xlarge", "neuron_devices": neuron_devices(1)}, NEW)
    (tmp_path / "store").mkdir()
    pack(PackRequest(name, "1.0", str(MODELS / "devices" / "handler.py"), export_path=tmp_path / "store"))
    flags = ("--ncs", "--enable-model-api")
    with daemon_of(tmp_path, [], command="torchserve", arguments=flags) as daemon:
        with GrpcSurface(daemon) as grpc, RestSurface(daemon) as rest:
            for client in (grpc, rest):
                error = client.register(f"{name}.mar", batch_size=6, max_batch_delay=5000, initial_workers=3).error
                assert error is not None
                assert (error.code, error.reason) == (REFUSED[client.name], "NOT_ENOUGH_DEVICES")
                assert error.message == (
                    f"model '{name}' asks for 3 NeuronCores (3 workers with 1 each); this machine has 2 and 2 are "
                    "free; scale to at most 2 workers"
                )
                assert client.models().json()["models"] == []
            query = f"url={name}.mar&batch_size=6&initial_workers=2&max_batch_delay=1"
            answer = rest.request("POST", f"/models?{query}", port="management")
            assert answer.error is None, answer.error
            cores = {worker["NEURON_RT_VISIBLE_CORES"] for worker in seen(rest, name, 2).values()}
            assert cores == {"0", "1"}
            before = {worker["pid"] for worker in wait_ready(rest, name, 2)}
            assert (
                rest.request("PUT", f"/models/{name}?batch_size=4&max_batch_delay=20", port="management").status == 200
            )
            assert _scaled(grpc, model_name=name, batch_size=3, max_batch_delay=10) == ""
            [model] = rest.describe(name).json()
            assert (model["batchSize"], model["maxBatchDelay"]) == (3, 10)
            assert {worker["pid"] for worker in wait_ready(rest, name, 2)} == before


def _scaled(client: GrpcSurface, **fields: Any) -> str:
    """What ScaleWorker says against it."""
    answer = client._manage("ScaleWorker", **fields)
    return "" if answer.error is None else answer.error.message


def test_a_group_is_refused_where_there_are_mig_instances_only(tmp_path: Path, surface: str) -> None:
    """field.md 37; the plain workers beside it have an instance each."""
    listed = "GPU 0: NVIDIA H200 (UUID: GPU-00000000-1111-2222-3333-444444444444)\n" + "".join(
        f"  MIG 1g.18gb     Device  {number}: (UUID: MIG-{number})\n" for number in range(3)
    )
    write_nvidia_smi(tmp_path / "tools", gpu_rows(1, mig=[0]), listed)
    with serving(tmp_path, 2) as daemon, SURFACES[surface](daemon) as client:
        visible = {worker["CUDA_VISIBLE_DEVICES"] for worker in seen(client, "devices", 2).values()}
        assert visible == {"MIG-0", "MIG-1"}
        (tmp_path / "store" / "devices.mar").unlink()
        pack_model(tmp_path, "devices", minWorkers=1, maxWorkers=1, parallelType="custom", parallelLevel=2)
        error = client.register("devices.mar", model_name="large").error
        assert error is not None
        assert (error.code, error.reason) == (REFUSED[surface], "NOT_ENOUGH_DEVICES")
        assert "this machine has 0 beside 3 MIG instances, of which a process can use one alone" in error.message
        assert [model["modelName"] for model in client.models().json()["models"]] == ["devices"]
