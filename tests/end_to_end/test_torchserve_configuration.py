"""config.properties at work: what its keys and the TS_ variables do to a running server (reference section 3)."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from harness.daemon import Daemon
from harness.eventually import eventually

from torchd_archiver.packing import PackRequest, pack

ECHO = Path(__file__).parents[1] / "models" / "echo" / "handler.py"
ENVIRONMENT = '''
import json
import os


def handle(data, context):
    """Answers the names of the variables it sees."""
    return [json.dumps(sorted(os.environ)) for _ in data or ()]
'''


def store_with(folder: Path, handler: Path = ECHO, **config: Any) -> Path:
    store = folder / "model_store"
    store.mkdir()
    file = None
    if config:
        file = folder / "model-config.yaml"
        file.write_text(json.dumps(config))
    pack(PackRequest("echo", "1.0", str(handler), export_path=store, config_file=file))
    return store


def get(port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def described(daemon: Daemon) -> dict[str, Any]:
    _, body = get(daemon.ports[1], "/models/echo")
    (found,) = json.loads(body)
    assert isinstance(found, dict)
    return found


def test_the_models_json_and_the_environment_reach_a_model(tmp_path: Path) -> None:
    daemon = Daemon(
        tmp_path,
        command="torchserve",
        store=store_with(tmp_path, maxBatchDelay=7),
        config=[
            "enable_envvars_config=true",
            "job_queue_size=11",
            "load_models=none.mar",
            "models={\\",
            '  "echo": {\\',
            '    "1.0": {"minWorkers": 2, "maxWorkers": 2, "batchSize": 4, "maxBatchDelay": 9, "responseTimeout": 0}\\',
            "  }\\",
            "}",
        ],
        variables={"TS_LOAD_MODELS": "all", "TS_DEFAULT_RESPONSE_TIMEOUT": "33"},
        arguments=["--disable-token-auth"],
    )
    with daemon:
        found = described(daemon)
    assert (found["minWorkers"], found["maxWorkers"], found["batchSize"], found["maxBatchDelay"]) == (2, 2, 4, 7)
    assert (found["responseTimeout"], found["loadedAtStartup"]) == (33, True)
    assert found["jobQueueStatus"]["remainingCapacity"] == 11


def test_one_address_serves_inference_and_management(tmp_path: Path) -> None:
    """Section 2.1, 10.9: SageMaker's and KServe's shape, with KServe's own model_snapshot."""
    state = (
        '{"marName":"echo.mar","minWorkers":1,"maxWorkers":1,"batchSize":1,"maxBatchDelay":10,"defaultVersion":true}'
    )
    daemon = Daemon(
        tmp_path,
        command="torchserve",
        store=store_with(tmp_path),
        config=[f'model_snapshot={{"name":"startup.cfg","modelCount":1,"models":{{"echo":{{"1.0":{state}}}}}}}'],
        arguments=["--disable-token-auth"],
    )
    port = daemon.ports[0]
    config = tmp_path / "config.properties"
    config.write_text(config.read_text().replace(str(daemon.ports[1]), str(port)))
    daemon.run_dir = tmp_path / "torchd" / str(port)
    with daemon:
        eventually(lambda: json.loads(get(port, "/models/echo")[1])[0]["workers"][0]["status"] == "READY", within=60)
        assert get(port, "/predictions/echo", b"hello") == (200, b"hello")
        assert get(port, "/ping")[0] == 200
        status, body = get(port, "/predictions/other", b"hello")
        assert (status, "other" in json.loads(body)["message"]) == (404, True)
        assert get(port, "/no/such/path")[0] == 404
        assert get(daemon.ports[2], "/metrics")[0] == 200


def test_blacklisted_variables_do_not_reach_workers(tmp_path: Path) -> None:
    handler = tmp_path / "seen.py"
    handler.write_text(ENVIRONMENT)
    daemon = Daemon(
        tmp_path,
        command="torchserve",
        store=store_with(tmp_path, handler),
        models=["echo.mar"],
        config=["default_workers_per_model=1", "blacklist_env_vars=SECRET_.*|OTHER"],
        variables={"SECRET_KEY": "1", "OTHER": "1", "OTHERWISE": "1"},
        arguments=["--disable-token-auth"],
    )
    with daemon:
        eventually(lambda: get(daemon.ports[0], "/predictions/echo", b"x")[0] == 200, within=60)
        seen = json.loads(get(daemon.ports[0], "/predictions/echo", b"x")[1])
    assert not {"SECRET_KEY", "OTHER"} & set(seen)
    assert "OTHERWISE" in seen


def test_one_worker_per_core_comes_after_the_first(tmp_path: Path) -> None:
    daemon = Daemon(
        tmp_path,
        command="torchserve",
        store=store_with(tmp_path),
        models=["echo.mar"],
        arguments=["--disable-token-auth"],
    )
    with daemon:
        eventually(lambda: len(described(daemon)["workers"]) == described(daemon)["maxWorkers"] >= 1, within=60)


def test_grpc_connections_end_at_their_age(tmp_path: Path) -> None:
    """Section 3.2: grpc_inference_max_connection_age_ms; the server closes, whatever the client wishes."""
    daemon = Daemon(
        tmp_path,
        command="torchserve",
        store=store_with(tmp_path),
        config=["grpc_inference_max_connection_age_ms=500", "grpc_inference_max_connection_age_grace_ms=100"],
        arguments=["--disable-token-auth"],
    )
    with daemon, socket.create_connection(("127.0.0.1", daemon.ports[3]), timeout=30) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))  # HTTP/2's first words
        while client.recv(4096):
            pass
