"""What the daemon asks of a place where workers run."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker process needs to exist."""

    name: str
    incarnation: int
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    # The interpreter to run it with; None for the daemon's own.
    python: Path | None = None
    # What each rank's environment has beside the common one, rank 0 first: one entry for each process of this worker.
    ranks: tuple[Mapping[str, str], ...] = ({},)
    # CPU cores that its processes divide among them, in the order of their ranks; empty: any.
    cores: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: its exit code, or the signal that killed it as a negative number."""

    code: int

    def __str__(self) -> str:
        """In words."""
        if self.code >= 0:
            return f"exited with status {self.code}"
        return f"was killed by {_signal_name(-self.code)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class WorkerProcess(Protocol):
    """A started worker process."""

    pid: int
    # Our end of the worker's socket; the link takes it over.
    socket: socket.socket
    # How it ended, once it has and was reaped.
    exited: asyncio.Future[Exit]

    @property
    def begun(self) -> int:
        """Number of the last batch it has begun, 0 before the first; ask before `close`."""

    def kill(self) -> None:
        """Ends it and every process of its session, whatever they are doing."""

    def dump_stacks(self) -> None:
        """Asks it to write its threads' stacks to its standard error."""

    def close(self) -> None:
        """Gives back what belongs to it, once it has ended."""


# Given each line that a process writes, after its rank and the stream's name.
Output = Callable[[int, str, str], None]


class Placement(Protocol):
    """A place where workers run."""

    async def launch(self, spec: WorkerSpec, output: Output) -> Sequence[WorkerProcess]:
        """Starts the processes of a worker, all or none, and gives them in the order of their ranks."""
