"""A daemon of the bench's own: `torchd serve` on free ports, in a folder that goes with it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import urlsplit

from torchd_clients.bench.errors import BenchError
from torchd_clients.bench.target import Protocol
from torchd_clients.bench.wire import address as host_and_port
from torchd_clients.credentials import KeyFile

_PORTS = ("grpc-inference", "grpc-management", "inference", "management", "metrics")
_LOOK_EVERY = 0.02
_STOP_WITHIN = 40.0
_LAST_BYTES = 4000
# What its log says when the workers of a model have failed too often.
_GAVE_UP = b"given up after"
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class StartedDaemon:
    """A running daemon: HOST:PORT of its listeners, its tokens, its process, and the file it writes its log to."""

    pid: int
    grpc_inference: str
    grpc_management: str
    inference: str
    management: str
    metrics: str
    key_file: str
    log: Path

    def address(self, protocol: Protocol) -> str:
        """Where models are asked over that protocol."""
        return self.grpc_inference if protocol == "grpc" else self.inference

    def token(self, scope: str) -> str:
        """The token of a scope, "inference" or "management"; empty where it asks for none."""
        return (KeyFile(self.key_file)(scope) or "") if self.key_file else ""


@contextmanager
def started_daemon(
    model_store: Path | None = None,
    models: Sequence[str] = (),
    arguments: Sequence[str] = (),
    config: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    within: float = 300.0,
) -> Iterator[StartedDaemon]:
    """Runs `torchd serve` until the block ends; it answers, and its models have their workers, when the block begins.

    Args:
        model_store: Folder of the archives.
        models: What `--models` takes, as in "bert=bert.mar".
        arguments: Further arguments of `torchd serve`.
        config: Lines of its config.properties.
        environment: Variables beside our own.
        within: Seconds until it must be ready. Raises BenchError with its last lines where it is not.
    """
    with tempfile.TemporaryDirectory(prefix="torchd-bench-") as folder:
        home = Path(folder)
        log = home / "daemon.log"
        properties = home / "config.properties"
        properties.write_text("".join(f"{line}\n" for line in config))
        run_dir = home / "run"
        command = [sys.executable, "-m", "torchd_server.cli", "serve", "--run-dir", str(run_dir)]
        command += [word for name in _PORTS for word in (f"--{name}-port", "0")]
        command += ["--model-store", str(model_store)] if model_store is not None else []
        command += ["--models", *models] if models else []
        command += ["--config", str(properties)] if config else []
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *arguments],
                cwd=home,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C goes to us alone; we stop it in order.
                start_new_session=True,
                preexec_fn=partial(_die_with_parent, os.getpid()),
            )
        try:
            started = _wait_listening(process, run_dir, log, until := monotonic() + within)
            _wait_healthy(process, started, until)
            yield started
        finally:
            _stop(process)


def _wait_listening(process: subprocess.Popen[bytes], run_dir: Path, log: Path, until: float) -> StartedDaemon:
    while b"Model server started." not in log.read_bytes():
        _wait_a_little(process, log, until)
    told = json.loads((run_dir / "daemon.json").read_text())
    return StartedDaemon(
        pid=process.pid,
        grpc_inference=_bare(told["grpc_inference"]),
        grpc_management=_bare(told["grpc_management"]),
        inference=_bare(told["inference"]),
        management=_bare(told["management"]),
        metrics=_bare(told["metrics"]),
        key_file=told.get("key_file", ""),
        log=log,
    )


def _wait_healthy(process: subprocess.Popen[bytes], started: StartedDaemon, until: float) -> None:
    """Waits until each model has its workers, which start beside the listeners."""
    while True:
        connection = HTTPConnection(*host_and_port(started.inference), timeout=_STOP_WITHIN)
        try:
            # Where tokens are asked for, this asks for one too.
            connection.request("GET", "/ping", headers={"Authorization": f"Bearer {started.token('inference')}"})
            if json.loads(connection.getresponse().read()).get("status") == "Healthy":
                return
        finally:
            connection.close()
        if _GAVE_UP in started.log.read_bytes():
            raise BenchError(f"the model could not be loaded; the daemon's last lines:\n{_tail(started.log)}")
        _wait_a_little(process, started.log, until)


def _wait_a_little(process: subprocess.Popen[bytes], log: Path, until: float) -> None:
    if process.poll() is not None:
        raise BenchError(f"the daemon ended with exit code {process.returncode}; its last lines:\n{_tail(log)}")
    if monotonic() > until:
        raise BenchError(f"the daemon was not ready in time; its last lines:\n{_tail(log)}")
    sleep(_LOOK_EVERY)


def _bare(address: str) -> str:
    return urlsplit(address if "//" in address else f"//{address}").netloc


def _tail(log: Path) -> str:
    return log.read_bytes()[-_LAST_BYTES:].decode(errors="replace")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _die_with_parent(parent: int) -> None:
    """Between fork and exec: the kernel ends the daemon with us, however we end."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
