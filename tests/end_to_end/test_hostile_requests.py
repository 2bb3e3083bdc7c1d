"""Clients, handlers and archives that ask for too much: each gets its answer, and nobody else notices."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import psutil
import pytest
from faults.arena import Arena, Client, wait_workers, worker_pids
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.surfaces import Crowd, Error, RestSurface, error_of

from torchd_archiver.packing import PackRequest, pack

MEBIBYTE = 1024 * 1024
CHUNK = 512 * 1024
HANDLER = f'''
import os
import time

from ts.handler_utils.utils import send_intermediate_predict_response


class Handler:
    def initialize(self, context):
        self.sent = 0

    def handle(self, data, context):
        value = next(iter(data[0].values()))
        act = getattr(self, bytes(value).decode(), None) if len(value) < 10 else None
        if act is not None:
            return [act(context)]
        return [f"{{type(value).__name__}} {{len(value)}}"]

    def pid(self, context):
        return str(os.getpid())

    def chunks(self, context):
        """128 MiB, and no more: a server that took them all would show it, and live."""
        self.sent = 0
        for self.sent in range(1, 257):
            send_intermediate_predict_response([b"x" * {CHUNK}], context.request_ids, "", 200, context)
        return "end"

    def stream(self, context):
        for _ in range(32):
            send_intermediate_predict_response([b"x" * {CHUNK}], context.request_ids, "", 200, context)
        return "end"

    def count(self, context):
        return str(self.sent)

    def newlines(self, context):
        end = time.monotonic() + 1
        while time.monotonic() < end:
            os.write(1, b"\\n" * 65536)
        return "done"
'''


def pack_handler(arena: Arena, **settings: int) -> str:
    """Packs the handler above as `plain`, one worker; returns the daemon's word for it."""
    (arena.folder / "handler.py").write_text(HANDLER)
    config = arena.folder / "model-config.yaml"
    config.write_text(json.dumps({"minWorkers": 1, "maxWorkers": 1, **settings}))
    handler = str(arena.folder / "handler.py")
    pack(PackRequest("plain", "1.0", handler, config_file=config, export_path=arena.store))
    return "plain=plain.mar"


def pid_of_worker(arena: Arena, daemon: Daemon) -> int:
    """Which process answers for `plain` now; waits until it is ready."""
    return int(arena.client("grpc", daemon).predict("plain", b"pid").body)


def test_an_integer_of_thousands_of_digits_reaches_the_handler_as_bytes(arena: Arena) -> None:
    with arena.daemon(models=(pack_handler(arena),)) as daemon:
        before = pid_of_worker(arena, daemon)
        answer = arena.client("rest", daemon).predict("plain", b"9" * 5000)
        assert (answer.status, answer.body) == (200, b"bytearray 5000")
        assert pid_of_worker(arena, daemon) == before


def send_parts(client: Client, names: list[str]) -> Error | None:
    """One request whose parts have these names; what was wrong with it."""
    if isinstance(client, RestSurface):
        form = "&".join(f"{name}=x" for name in names).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return client.request("POST", "/predictions/plain", form, headers).error
    request = client.messages.PredictionsRequest(model_name="plain", input=dict.fromkeys(names, b"x"))
    try:
        client.inference.Predictions(request, timeout=60)
    except grpc.RpcError as error:
        return error_of(error)
    return None


def test_the_names_of_a_requests_parts_have_a_limit(arena: Arena, surface: str) -> None:
    """64 KiB in all, be it one name or many."""
    thousands = [f"{number:01000}" for number in range(100)]
    with arena.daemon(models=(pack_handler(arena),)) as daemon:
        before = pid_of_worker(arena, daemon)
        client = arena.client(surface, daemon)
        assert send_parts(client, thousands[:60]) is None
        for names in (["n" * MEBIBYTE], thousands):
            error = send_parts(client, names)
            assert error is not None
            assert error.code == {"grpc": "INVALID_ARGUMENT", "rest": 400}[surface]
            assert error.reason == "BAD_REQUEST"
            assert "65536" in error.message
            assert len(error.message) < 1000
        assert pid_of_worker(arena, daemon) == before


def test_a_plain_call_to_a_streaming_handler_is_ended_at_the_limit_of_an_answer(arena: Arena) -> None:
    """The worker is told to stop; the daemon never holds what the handler would have sent."""
    config = arena.folder / "limits.properties"
    config.write_text(f"max_response_size={2 * MEBIBYTE}\n")
    with arena.daemon("--config", str(config), models=(pack_handler(arena),)) as daemon:
        before = pid_of_worker(arena, daemon)
        client = arena.client("grpc", daemon)
        peak = peak_bytes(daemon.pid)
        error = client.predict("plain", b"chunks").error
        assert error is not None
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "RESPONSE_TOO_LARGE")
        assert peak_bytes(daemon.pid) - peak < 32 * MEBIBYTE
        assert int(client.predict("plain", b"count").body) < 64  # the limit, the window, and what was on its way
        assert pid_of_worker(arena, daemon) == before


def peak_bytes(pid: int) -> int:
    """The most resident memory a process has had."""
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(peak) * 1024


def test_a_steady_reader_may_take_longer_than_the_response_timeout(arena: Arena, surface: str) -> None:
    """It reads more slowly than the handler sends, each chunk far within the timeout, all of them far beyond it."""
    pace = threading.Event()
    with arena.daemon(models=(pack_handler(arena, responseTimeout=1),)) as daemon:
        pid_of_worker(arena, daemon)
        body = bytearray()
        for chunk in slow_chunks(arena, daemon, surface):
            body += chunk
            pace.wait(0.1)
        assert len(body) == 32 * CHUNK + len(b"end")
        assert body.endswith(b"xend")


def slow_chunks(arena: Arena, daemon: Daemon, surface: str) -> Iterator[bytes]:
    """The chunks of `stream`, of a client whose kernel takes next to nothing ahead."""
    client = arena.client(surface, daemon)
    if not isinstance(client, RestSurface):
        yield from client.stream("plain", b"stream")
        return
    connection = client.connect("inference")
    connection.sock = socket.socket()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    connection.sock.settimeout(60)
    connection.sock.connect((connection.host, connection.port))
    with closing(connection):
        connection.request("POST", "/predictions/plain", b"stream")
        response = connection.getresponse()
        while chunk := response.read(CHUNK):
            yield chunk


MANY_CALLS = """
import asyncio, sys
import grpc, inference_pb2, inference_pb2_grpc


async def main():
    async with grpc.aio.insecure_channel(sys.argv[1]) as channel:
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        request = inference_pb2.PredictionsRequest(model_name="plain", input={"data": b"pid"})
        outcomes = await asyncio.gather(
            *(stub.Predictions(request, timeout=60) for _ in range(900)), return_exceptions=True
        )
    failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    print(len(outcomes) - len(failed), *failed[:1])

asyncio.run(main())
"""


def test_many_calls_at_once_on_one_channel_all_succeed(arena: Arena, stubs: Path) -> None:
    """grpc.aio opens every stream at once. In a process of its own, since it keeps threads for good."""
    with arena.daemon(models=(pack_handler(arena, jobQueueSize=2000),)) as daemon:
        pid_of_worker(arena, daemon)
        address = ":".join(map(str, daemon.host_and_port("grpc_inference")))
        done = subprocess.run(
            [sys.executable, "-c", MANY_CALLS, address],
            env={**daemon.environment, "PYTHONPATH": str(stubs)},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.stdout.strip() == "900", done.stderr[-2000:]


def test_an_idle_worker_may_be_killed_as_often_as_one_likes(arena: Arena) -> None:
    """W02, W13: a model is given up for workers that never get ready, not for those that were."""
    arena.pack(minWorkers=1, maxWorkers=1)
    with arena.daemon(models=("zoo=zoo-1.0.mar",)) as daemon:
        client = arena.client("grpc", daemon)
        for _ in range(6):
            [worker] = wait_workers(client, 1)
            arena.nemesis.kill(worker)
            psutil.wait_procs([psutil.Process(worker)] if psutil.pid_exists(worker) else [], timeout=10)
            eventually(lambda worker=worker: worker_pids(client) - {worker})  # type: ignore[misc]
        arena.predict(client).json()
        assert "given up" not in daemon.log


@pytest.mark.parametrize("value", ["!!bool foo", "!!int ''", "!!timestamp foo"])
def test_a_broken_config_file_is_the_archives_fault_and_stops_nobody_else(arena: Arena, value: str) -> None:
    manifest = {"modelName": "bad", "modelVersion": "1.0", "handler": "h.py", "configFile": "model-config.yaml"}
    with zipfile.ZipFile(arena.store / "bad.mar", "w") as archive:
        archive.writestr("h.py", "def handle(data, context):\n    return data\n")
        archive.writestr("model-config.yaml", f"minWorkers: {value}\n")
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": manifest}))
    with arena.daemon(models=("bad.mar", pack_handler(arena))) as daemon:
        pid_of_worker(arena, daemon)
        client = arena.client("grpc", daemon)
        error = client.register("bad.mar").error
        assert error is not None
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "BAD_ARCHIVE")
        assert [model["modelName"] for model in client.models().json()["models"]] == ["plain"]
        assert len(list((daemon.run_dir / "models").iterdir())) == 1  # the good one's


def test_a_handler_that_prints_without_end_holds_nobody_up(arena: Arena) -> None:
    """H12: lines are dropped, and their number is told."""
    with arena.daemon(models=(pack_handler(arena),)) as daemon, Crowd(1) as crowd:
        pid_of_worker(arena, daemon)
        client = arena.client("rest", daemon)
        flood = crowd.call(client.predict, "plain", b"newlines")
        slowest = 0.0
        while not flood.done():
            asked = time.monotonic()
            assert client.ping() == "Healthy"
            slowest = max(slowest, time.monotonic() - asked)
        assert slowest < 1.0
        assert flood.result().body == b"done"
        eventually(lambda: re.search(r"[1-9]\d* lines were dropped", daemon.log))
        assert daemon.log.count("\n") < 10_000


def test_a_management_call_has_a_small_body(arena: Arena) -> None:
    with arena.daemon() as daemon:
        client = arena.client("rest", daemon)
        assert isinstance(client, RestSurface)
        body = json.dumps({"url": "x" * MEBIBYTE}).encode()
        answer = client.request("POST", "/models", body, {"Content-Type": "application/json"}, port="management")
        assert answer.status == 413


def test_a_registration_that_was_taken_back_is_not_to_be_described(arena: Arena) -> None:
    """There is nothing left that `torchd describe` could show."""
    arena.pack(handler={"load_error": "no weights"})
    with arena.daemon() as daemon:
        done = subprocess.run(
            [
                str(daemon.commands / "torchd"),
                *("register", "zoo-1.0.mar"),
                *("--grpc-management", ":".join(map(str, daemon.host_and_port("grpc_management")))),
            ],
            cwd=arena.folder,
            env=daemon.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert "no weights" in done.stderr
        assert "torchd describe" not in done.stderr + done.stdout
        assert arena.client("grpc", daemon).models().json()["models"] == []


def test_a_client_that_leaves_while_its_answer_is_written_takes_nobody_with_it(arena: Arena) -> None:
    """Its window is smaller than the answer, and it reads none: when it leaves, the daemon is surely still writing."""
    with arena.daemon(command="torchserve") as daemon:
        host, port = daemon.host_and_port("grpc_inference")
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.http2.lookahead_bytes", 512),
            ("grpc.http2.bdp_probe", 0),
        ]
        asked = ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService")
        with grpc.insecure_channel(f"{host}:{port}", options=options) as channel:
            for left in range(1, 6):
                call = ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]), timeout=20.0)
                call.initial_metadata()  # comes with the beginning of the answer
                call.cancel()
                eventually(lambda left=left: daemon.log.count("ACCESS_LOG - /127.0.0.1:") == left)
            assert HealthStub(channel).Check(HealthCheckRequest(), timeout=20.0).status == HealthCheckResponse.SERVING
        assert "Traceback" not in daemon.log
