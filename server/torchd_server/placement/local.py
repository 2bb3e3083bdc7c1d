"""Workers as processes of this machine: one end of a socketpair inherited, a session of their own, no path, no port.

A worker dies with the daemon whatever kills it: it asks the kernel for SIGKILL when its parent ends (which counts from
the thread that spawned it, so workers are spawned from the main thread only), and it leaves at the end of its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import IO, Protocol

from torchd_server.environment import passed_on
from torchd_server.faults import fault
from torchd_server.placement.base import Exit, Output, WorkerSpec
from torchd_server.placement.common_page import CommonPage

LINE_BYTES = 8 * 1024
LINES_PER_SECOND = 1000
SOCKET_BUFFER_BYTES = 1024 * 1024


class HasFileno(Protocol):
    """What a process can be given: a socket, or the page."""

    def fileno(self) -> int:
        """Its descriptor."""


class LocalPlacement:
    """Starts workers that are one process."""

    def __init__(self, environment: Mapping[str, str], allowed: str | None, hidden: str = "") -> None:
        """`allowed` and `hidden` are expressions that the names of variables match in full; None allows all."""
        self._environment = passed_on(environment, allowed, hidden)

    async def launch(self, spec: WorkerSpec, output: Output) -> Sequence[LocalProcess]:
        """Starts one worker; must run in the main thread."""
        return [await self.spawn(spec, 0, {**spec.environment, **spec.ranks[0]}, {}, output)]

    async def spawn(
        self,
        spec: WorkerSpec,
        rank: int,
        environment: Mapping[str, str],
        inherited: Mapping[str, Sequence[socket.socket]],
        output: Output,
    ) -> LocalProcess:
        """Starts one process of a worker. `inherited`: sockets it is given, by the option that tells it which."""
        fault("worker.spawn")
        started, pipes = self._start(spec, rank, environment, inherited)
        try:
            await started.read_output(pipes, partial(output, rank))
        except BaseException:  # nobody else knows of it yet
            started.kill()
            started.close()
            for pipe in pipes.values():
                pipe.close()
            raise
        return started

    def _start(
        self,
        spec: WorkerSpec,
        rank: int,
        environment: Mapping[str, str],
        inherited: Mapping[str, Sequence[socket.socket]],
    ) -> tuple[LocalProcess, dict[str, IO[bytes]]]:
        """The process, and what it writes to its standard output and error; leaves nothing open where it fails."""
        with ExitStack() as theirs, ExitStack() as ours:
            our_end, their_end = connected_sockets()
            ours.enter_context(our_end).setblocking(False)
            theirs.enter_context(their_end)
            page = ours.enter_context(CommonPage())
            named: dict[str, Sequence[HasFileno]] = {"fd": [their_end], "page": [page], **inherited}
            # Made here and not by Popen, which leaves open what it has where there is no descriptor for the rest.
            nothing = os.open(os.devnull, os.O_RDONLY)
            theirs.callback(os.close, nothing)
            pipes: dict[str, IO[bytes]] = {}
            writers: dict[str, int] = {}
            for name in ("stdout", "stderr"):
                reader, writers[name] = os.pipe()
                theirs.callback(os.close, writers[name])
                pipes[name] = ours.enter_context(os.fdopen(reader, "rb", buffering=0))
            process = subprocess.Popen(
                [str(spec.python or sys.executable), "-P", "-m", "torchd_workers", *_arguments(spec, rank, named)],
                cwd=spec.directory,
                env={**self._environment, **_import_paths(self._environment), **environment},
                stdin=nothing,
                stdout=writers["stdout"],
                stderr=writers["stderr"],
                pass_fds=[end.fileno() for ends in named.values() for end in ends],
                start_new_session=True,
            )
            ours.callback(process.wait)
            ours.callback(process.kill)
            started = LocalProcess(process, our_end, page)
            ours.pop_all()
        return started, pipes


def connected_sockets() -> tuple[socket.socket, socket.socket]:
    """The two ends of a socket between processes, large enough for a batch."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    return ends


def _arguments(spec: WorkerSpec, rank: int, inherited: Mapping[str, Sequence[HasFileno]]) -> list[str]:
    options: dict[str, Sequence[int]] = {name: [end.fileno() for end in ends] for name, ends in inherited.items()}
    each = len(spec.cores) // len(spec.ranks)
    cores = spec.cores[rank * each : (rank + 1) * each]
    options |= {"incarnation": [spec.incarnation], "rank": [rank], "parent": [os.getpid()], "cores": cores}
    named = {f"--{name}": ",".join(map(str, numbers)) for name, numbers in options.items() if numbers}
    return [word for option in named.items() for word in option]


def _import_paths(environment: Mapping[str, str]) -> dict[str, str]:
    """The daemon's PYTHONPATH with relative entries made absolute: a worker starts in its model's directory."""
    entries = [os.path.abspath(entry) for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return {"PYTHONPATH": os.pathsep.join(entries)} if entries else {}


class LocalProcess:
    """One worker process of this machine, watched through its pidfd: never confused with another of the same number."""

    def __init__(self, process: subprocess.Popen[bytes], ours: socket.socket, page: CommonPage) -> None:
        self.pid = process.pid
        self.socket = ours
        self._page = page
        self._process = process
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._pipes: list[asyncio.ReadTransport] = []
        self._pidfd = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._exited)

    @property
    def begun(self) -> int:
        """See WorkerProcess.begun."""
        return self._page.begun

    def kill(self) -> None:
        """SIGKILL to the whole session: what the worker forked goes with it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def dump_stacks(self) -> None:
        """The worker's runtime has registered its stack dump on SIGUSR2."""
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGUSR2)

    def close(self) -> None:
        """Ends what its children may still hold open: the pipes and the socket."""
        self.socket.close()
        self._page.close()
        for pipe in self._pipes:
            pipe.close()

    async def read_output(self, pipes: Mapping[str, IO[bytes]], output: Callable[[str, str], None]) -> None:
        """Drains its standard output and error from now on; the pipes are its own then."""
        for name, pipe in pipes.items():
            lines = partial(_Lines, name, output)
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(lines, pipe)
            self._pipes.append(transport)

    def _exited(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        # Until it is reaped its number cannot be used again: what it left in its session dies with it, nobody else.
        self.kill()
        code = self._process.wait()  # it has exited: this reaps and does not wait
        os.close(self._pidfd)
        if not self.exited.cancelled():
            self.exited.set_result(Exit(code))


class _Lines(asyncio.Protocol):
    """Cuts a worker's output into lines of bounded length, and passes on so many a second."""

    def __init__(self, stream: str, output: Callable[[str, str], None]) -> None:
        self._stream = stream
        self._output = output
        self._rest = b""
        self._second = 0
        self._told = 0
        self._dropped = 0

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES:  # a line without an end is cut, not collected
            lines.append(self._rest)
            self._rest = b""
        room = self._room()
        for line in lines[:room]:
            self._tell(line)
        self._told += min(room, len(lines))
        self._dropped += max(0, len(lines) - room)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._tell(self._rest)
            self._rest = b""
        self._tell_dropped()

    def _room(self) -> int:
        """Lines that may still be passed on in this second."""
        second = int(time.monotonic())
        if second != self._second:
            self._tell_dropped()
            self._second, self._told = second, 0
        return LINES_PER_SECOND - self._told

    def _tell_dropped(self) -> None:
        if self._dropped:
            self._output(self._stream, f"({self._dropped} lines were dropped: more than {LINES_PER_SECOND} a second)")
            self._dropped = 0

    def _tell(self, line: bytes) -> None:
        shown = line.rstrip(b"\r").rpartition(b"\r")[2]  # of a progress bar, what would be left on a terminal
        self._output(self._stream, shown[:LINE_BYTES].decode("utf-8", "replace"))
