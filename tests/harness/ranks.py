"""Programs that run as several ranks of one group, with the environment torchrun gives, for tests without a daemon."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Finished:
    """What one rank left behind."""

    status: int
    stdout: str
    stderr: str


def run_ranks(
    program: Path,
    *arguments: str,
    ranks: int = 2,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 100.0,
) -> list[Finished]:
    """Runs `python program arguments` once for each rank, together; each prints what the test wants to know."""
    port = str(_free_port())
    running = [
        subprocess.Popen(
            [sys.executable, str(program), *arguments],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "GLOO_SOCKET_IFNAME": "lo",
                "OMP_NUM_THREADS": "1",
                **(environment or {}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        told = [process.communicate(timeout=timeout_seconds) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [Finished(process.returncode, *texts) for process, texts in zip(running, told, strict=True)]


def outputs(finished: Sequence[Finished]) -> list[str]:
    """The standard output of each rank; fails with the errors of those that failed."""
    failed = [f"rank {rank}: {one.stderr}" for rank, one in enumerate(finished) if one.status]
    assert not failed, "\n".join(failed)
    return [one.stdout for one in finished]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def tell(report: str) -> None:
    """Ends a program of a rank with what it has to say; as a worker ends, without taking the interpreter apart."""
    print(report, flush=True)
    os._exit(0)
