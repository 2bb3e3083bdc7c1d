"""The daemon as a user starts it: its command line, its ready line, its run directory, its signals."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import psutil

from harness.commands import environment, install_commands
from harness.leaks import files_in

READY_LINE = "Model server started."
PATIENCE = 60.0
CRASHES = [-number for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)]
ANY_PORTS = [
    argument
    for name in ("grpc-inference", "grpc-management", "inference", "management", "metrics")
    for argument in (f"--{name}-port", "0")
]
CONFIG = """\
inference_address=http://127.0.0.1:{0}
management_address=http://127.0.0.1:{1}
metrics_address=http://127.0.0.1:{2}
grpc_inference_port={3}
grpc_management_port={4}
"""


class Daemon:
    """One daemon process in a folder of its own: `run` for its run directory, `tmp` for its temporary files.

    A context manager: starts on entry, stops by SIGTERM on exit (kills where a test has failed). `arguments` come after
    the command's own; `command` is "torchd" or "torchserve". `config` are lines behind the addresses in the latter's
    config.properties, which keeps `snapshots` only when told to. Without `tokens` callers are asked for none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        store: Path | None = None,
        models: Sequence[str] = (),
        arguments: Sequence[str] = (),
        command: str = "torchd",
        run_dir: Path | None = None,
        config: Sequence[str] = (),
        snapshots: bool = False,
        variables: Mapping[str, str] | None = None,
        tokens: bool = False,
    ) -> None:
        self.folder = folder
        self.ports = free_ports(5) if command == "torchserve" else [0] * 5
        # TorchServe's command line has no run directory: the default one is taken.
        self.run_dir = run_dir or (folder / "run" if command == "torchd" else folder / "torchd" / str(self.ports[1]))
        self.scratch = folder / "tmp"
        self.config = folder / "config.properties"
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.commands = install_commands(folder / "bin")
        self.environment = environment(self.commands, self.scratch) | {"XDG_RUNTIME_DIR": str(folder)}
        self.environment |= variables or {}
        off = [] if tokens else ["--no-token-auth" if command == "torchd" else "--disable-token-auth"]
        self.command = [*self._start(command, config, snapshots), *off, *_models(store, models), *arguments]
        self.addresses: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []
        self._ready = threading.Event()
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running().poll() is not None:
            self.wait()
        elif kind is None:
            code = self.stop()
            assert code == 0, f"the daemon left with {code}:\n{self.log}"
        else:
            self.kill()
        if kind is not None:
            print(self.log)  # pytest shows it with the failure

    def start(self) -> Self:
        """Starts the process and returns once it says that it is ready."""
        self.launch()
        assert self.wait_ready_or_gone(), f"the daemon left before it was ready:\n{self.log}"
        self.addresses = json.loads((self.run_dir / "daemon.json").read_text())
        return self

    def wait_ready_or_gone(self) -> bool:
        """Whether it came up: returns when it says that it is ready, or has left."""
        assert self._ready.wait(PATIENCE), f"neither ready nor gone in {PATIENCE} s:\n{self.log}"
        return any(READY_LINE in line for line in self._lines)

    def launch(self) -> None:
        """Starts the process and returns at once."""
        self._process = subprocess.Popen(
            self.command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), name="daemon log")
        self._reader.start()

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self._running().pid

    @property
    def log(self) -> str:
        """Everything it has written to stdout and stderr so far."""
        return "".join(self._lines)

    def host_and_port(self, name: str) -> tuple[str, int]:
        """The address of a listener: "grpc_inference", "grpc_management", "inference", "management", "metrics"."""
        address = self.addresses[name]
        parts = urlsplit(address if "//" in address else f"//{address}")
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def token(self, scope: str) -> str:
        """The key of a scope, as its file has it now: "inference", "management" or "API"."""
        return str(json.loads(Path(self.addresses["key_file"]).read_text())[scope]["key"])

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the daemon alone."""
        self._running().send_signal(number)

    def stop(self) -> int:
        """SIGTERM; returns its exit code once it has left."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> int:
        """SIGKILL; returns its exit code (-9)."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def wait(self, timeout: float = PATIENCE) -> int:
        """Returns its exit code once it has left and its output is read to the end; fails where it has crashed."""
        code = self._running().wait(timeout)
        if self._reader is not None:
            self._reader.join(timeout)
        # Whatever a test does to it: to its clients a crash looks like any torn connection.
        assert code not in CRASHES, f"the daemon crashed: {signal.Signals(-code).name}\n{self.log}"
        if code == 0:  # an orderly end leaves no file behind (P14)
            left = [*files_in(self.scratch), *(name for name in files_in(self.run_dir) if name != "lock")]
            assert not left, f"files left behind: {left}"
        return code

    def children(self) -> list[psutil.Process]:
        """Every process under the daemon."""
        return psutil.Process(self.pid).children(recursive=True)

    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None, "the daemon was never started"
        return self._process

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._lines.append(line)
                if READY_LINE in line:
                    self._ready.set()
        self._ready.set()

    def write_config(self, lines: Sequence[str] = ()) -> None:
        """Writes config.properties: the addresses, and `lines` of one's own."""
        self.config.write_text(CONFIG.format(*self.ports) + "".join(f"{line}\n" for line in lines))

    def _start(self, command: str, config: Sequence[str], snapshots: bool) -> list[str]:
        program = str(self.commands / command)
        if command == "torchd":
            return [program, "serve", "--run-dir", str(self.run_dir), *ANY_PORTS]
        # TorchServe's command line has no ports: they stand in config.properties.
        self.write_config(config)
        keep = [] if snapshots else ["--ncs"]
        return [program, "--start", "--foreground", *keep, "--ts-config", str(self.config)]


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for found in sockets:
        found.bind(("127.0.0.1", 0))
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def _models(store: Path | None, models: Sequence[str]) -> list[str]:
    return [*(["--model-store", str(store)] if store else []), *(["--models", *models] if models else [])]
