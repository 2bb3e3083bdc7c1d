"""A daemon of a script's own: started, waited for, and gone when the script is, however that ends."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Self

READY_LINE = "Model server started."
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class DaemonFailed(RuntimeError):
    """The daemon did not start, or did not end as it should."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the daemon listens: HOST:PORT for gRPC, URLs for REST; and where its tokens are."""

    grpc_inference: str
    grpc_management: str
    inference: str
    management: str
    metrics: str
    key_file: str = ""


class Daemon:
    """`torchd serve` as a child process; as a context manager it is stopped at the end."""

    def __init__(self, arguments: Sequence[str], *, run_dir: Path, log: Path) -> None:
        """Holds what to start; `log` gets everything the daemon prints."""
        self._command = [
            sys.executable,
            "-m",
            "torchd_server.cli",
            "serve",
            *arguments,
            "--run-dir",
            str(run_dir),
        ]
        self._run_dir = run_dir
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._ready = threading.Event()
        self._last_lines: deque[str] = deque(maxlen=15)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self._running().pid

    def start(self) -> None:
        """Starts the process and returns at once."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # A session of its own: Ctrl-C goes to the script alone, which then stops the daemon in order.
            start_new_session=True,
            preexec_fn=partial(_die_with_parent, os.getpid()),
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def wait_ready(self, timeout_seconds: float = 60.0) -> Addresses:
        """Waits until every listener is bound; DaemonFailed with its last lines if it ends before."""
        if not self._ready.wait(timeout_seconds):
            raise self._failure(f"the daemon was not ready after {timeout_seconds:g} s")
        self.check()
        written = json.loads((self._run_dir / "daemon.json").read_text())
        return Addresses(**{name: written[name] for name in Addresses.__dataclass_fields__ if name in written})

    def check(self) -> None:
        """DaemonFailed, with its last lines, if the daemon has ended."""
        code = self._running().poll()
        if code is not None:
            raise self._failure(f"the daemon ended with exit code {code}")

    def stop(self, timeout_seconds: float = 40.0) -> None:
        """Sends SIGTERM and waits; DaemonFailed unless the daemon ends with exit code 0."""
        process = self._running()
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise self._failure(f"the daemon was still there {timeout_seconds:g} s after SIGTERM") from None
        if code != 0:
            raise self._failure(f"the daemon ended with exit code {code} after SIGTERM")

    def kill(self) -> None:
        """Ends what is left: asked first, then killed. Workers end with their daemon."""
        process = self._running()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._reader is not None:
            self._reader.join(5.0)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise DaemonFailed("the daemon has not been started")
        return self._process

    def _read(self, output: IO[str]) -> None:
        with self._log.open("w") as log:
            for line in output:
                log.write(line)
                log.flush()
                self._last_lines.append(line)
                if _COLOUR.sub("", line).strip() == READY_LINE:
                    self._ready.set()
        if self._process is not None:
            self._process.wait()
        self._ready.set()

    def _failure(self, what: str) -> DaemonFailed:
        return DaemonFailed(f"{what}; its last lines (all of them in {self._log}):\n{''.join(self._last_lines)}")


def _die_with_parent(parent: int) -> None:
    """Between fork and exec: the kernel kills the daemon if the script dies, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have died before the line above; then nobody would ever be told.
    if os.getppid() != parent:
        os._exit(1)
