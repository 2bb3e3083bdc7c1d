"""Clients that others made, unmodified: Triton's and KServe's, raw and typed tensors, over gRPC and REST.

Each runs in a process of its own, as a user's program would.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.arena import wait_workers
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.surfaces import RestSurface, open_channel

from torchd_archiver.packing import PackRequest, pack
from torchd_protos import open_inference_pb2 as pb

HERE = Path(__file__).parent
HANDLER = HERE.parent / "models" / "tensors" / "handler.py"
KSERVE = "kserve==0.21.0"
CONFIG = """\
minWorkers: 1
maxWorkers: 1
inputs:
  - {name: fp32, datatype: FP32, shape: [-1, 4]}
outputs:
  - {name: fp32_out, datatype: FP32, shape: [-1, 4]}
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that serves the model `tensors`."""
    store = tmp_path / "store"
    store.mkdir()
    config = tmp_path / "model-config.yaml"
    config.write_text(CONFIG)
    pack(PackRequest(model_name="tensors", version="1.0", handler=str(HANDLER), config_file=config, export_path=store))
    with Daemon(tmp_path, store=store, models=("tensors.mar",)) as daemon:
        wait_workers(RestSurface(daemon), 1, "tensors")
        yield daemon


@pytest.fixture(scope="session")
def kserve_python() -> Path:
    """The interpreter of an environment with KServe's client from PyPI; made once and kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "torchd-tests"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache / f"{KSERVE.replace('==', '-')}-python{version}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", KSERVE], check=True, timeout=600)
        (folder / "complete").touch()
    return python


def run(python: Path | str, script: str, *arguments: str) -> None:
    """Runs a client to its end; its own assertions say what went wrong."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), str(HERE / "stock" / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.endswith("ok\n"), done.stdout + done.stderr


def test_tritons_grpc_client_works_unmodified(daemon: Daemon) -> None:
    run(sys.executable, "triton_grpc.py", "{}:{}".format(*daemon.host_and_port("grpc_inference")))


def test_tritons_http_client_works_unmodified(daemon: Daemon) -> None:
    run(sys.executable, "triton_http.py", "{}:{}".format(*daemon.host_and_port("inference")))


def test_a_stream_that_is_left_takes_its_requests_back(daemon: Daemon) -> None:
    """Those that run and those that wait: nobody works for a client that has gone."""
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="a", datatype="INT8", shape=[1], contents=pb.InferTensorContents(int_contents=[1])
    )
    request = pb.ModelInferRequest(
        model_name="tensors", inputs=[tensor], parameters={"do": pb.InferParameter(string_param="wait")}
    )
    rest = RestSurface(daemon)

    def pending() -> int:
        return int(rest.describe("tensors").json()[0]["jobQueueStatus"]["pendingRequests"])

    with open_channel(daemon, "grpc_inference") as channel:
        stream = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )(iter([request] * 5))
        eventually(lambda: pending() == 4)
        stream.cancel()
        eventually(lambda: pending() == 0)
    answer = rest.request("POST", "/v2/models/tensors/infer", b'{"inputs": []}')
    assert answer.json()["outputs"] == []


@pytest.mark.timeout(700)
def test_kserves_clients_work_unmodified(daemon: Daemon, kserve_python: Path) -> None:
    run(
        kserve_python,
        "kserve_clients.py",
        "{}:{}".format(*daemon.host_and_port("grpc_inference")),
        "http://{}:{}".format(*daemon.host_and_port("inference")),
    )
