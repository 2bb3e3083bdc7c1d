"""The servers of scripts/bench while they run: torchd, TorchServe, and the bare ones."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from torchd_clients.bench.daemon import started_daemon
from torchd_clients.bench.target import Protocol

_LOOK_EVERY = 0.05
_STOP_WITHIN = 15.0


class ServerFailed(Exception):
    """A server did not start; the text says what it said."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers: HOST:PORT by protocol, and the process at the top of its tree."""

    pid: int
    addresses: Mapping[Protocol, str]


@contextmanager
def torchd(archive: Path, arguments: Sequence[str] = ()) -> Iterator[Running]:
    """`torchd serve` with this model; without tokens, as the others are."""
    names = [f"{archive.stem}={archive.name}"]
    with started_daemon(archive.parent, names, ["--no-token-auth", *arguments]) as daemon:
        yield Running(daemon.pid, {"rest": daemon.inference, "grpc": daemon.grpc_inference})


@contextmanager
def bare(protocol: Protocol, is_echo: bool, folder: Path) -> Iterator[Running]:
    """The server of `benchmarks.bare` for this protocol."""
    (port,) = free_ports(1)
    module = {"rest": "benchmarks.bare.http_server", "grpc": "benchmarks.bare.grpc_server"}[protocol]
    command = [sys.executable, "-m", module, str(port), "echo" if is_echo else "ok"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with process(command, environment, folder, folder / f"bare-{protocol}.log") as started:
        started.wait_until(lambda: _takes_connections(port), 30.0)
        yield Running(started.pid, {protocol: f"127.0.0.1:{port}"})


class Process:
    """A server in a session of its own, its output in a file."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._log = log

    def wait_until(self, is_ready: Callable[[], bool], within: float) -> None:
        """Asks until it is ready. Raises ServerFailed, with its last lines, where it is not."""
        until = time.monotonic() + within
        while not is_ready():
            if self._process.poll() is not None:
                raise ServerFailed(f"{self._what()} ended with exit code {self._process.returncode}{self._tail()}")
            if time.monotonic() > until:
                raise ServerFailed(f"{self._what()} did not answer within {within:g} s{self._tail()}")
            time.sleep(_LOOK_EVERY)

    def stop(self) -> None:
        """Asks it to end, and ends what is left of its tree."""
        try:
            tree = [*psutil.Process(self.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            tree = []
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_WITHIN)
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                one.kill()  # which looks whether the number is still that process'
        self._process.kill()
        self._process.wait()

    def _what(self) -> str:
        return Path(str(self._process.args[0])).name if isinstance(self._process.args, list) else "a server"

    def _tail(self) -> str:
        return f"; its last lines:\n{self._log.read_bytes()[-2000:].decode(errors='replace')}"


@contextmanager
def process(command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> Iterator[Process]:
    """Runs a server until the block ends."""
    with log.open("wb") as output:
        popen = subprocess.Popen(
            [*command],
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = Process(popen, log)
    try:
        yield started
    finally:
        started.stop()


def answers(address: str, path: str, body: bytes) -> bool:
    """Whether a POST of this body is answered well."""
    connection = http.client.HTTPConnection(address, timeout=120)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/octet-stream"})
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now. All are held together, so that no two are the same."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def _takes_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


@contextmanager
def on_cores(cores: set[int] | None) -> Iterator[None]:
    """What is started in the block may only run on these cores; None leaves it all."""
    before = os.sched_getaffinity(0)
    try:
        if cores is not None:
            os.sched_setaffinity(0, cores)
        yield
    finally:
        os.sched_setaffinity(0, before)
