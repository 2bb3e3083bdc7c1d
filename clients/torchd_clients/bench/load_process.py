"""One load process: `python -m torchd_clients.bench.load_process`, told by its parent through standard input.

It imports no gRPC and no protobuf: it starts in some 50 ms and its memory is its sockets.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from time import monotonic
from typing import IO

from torchd_clients.bench.engine import Engine, Unreachable
from torchd_clients.bench.job import PROGRESS, READY, TROUBLE, WARM, read_job, say, write_outcome

_PR_SET_TIMERSLACK = 29
_PROGRESS_EVERY = 0.25


class Pipe:
    """The parent, as the engine sees it."""

    def __init__(self, told: IO[bytes], to: IO[bytes]) -> None:
        self.file = told.fileno()
        self._to = to
        self._next = 0.0

    def ready(self) -> None:
        """This process has its connections."""
        say(self._to, READY)

    def warm(self) -> None:
        """This process has warmed up."""
        say(self._to, WARM)

    def begin(self) -> float:
        """From when on answers count. Leaves where the parent is gone, which nobody outlives."""
        line = os.read(self.file, 100)
        if not line:
            sys.exit(1)
        return float(json.loads(line))

    def progress(self, answered: int, failed: int) -> None:
        """How far it is, a few times a second."""
        now = monotonic()
        if now >= self._next:
            self._next = now + _PROGRESS_EVERY
            say(self._to, PROGRESS, answered, failed)


def main() -> None:
    """Reads the job, asks, and writes what came of it."""
    # Sleeps end when they should: by default the kernel may lengthen each by 50 microseconds.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)
    told, to = sys.stdin.buffer, sys.stdout.buffer
    job = read_job(told)
    try:
        outcome = Engine(job, Pipe(told, to)).run()
    except Unreachable as trouble:
        say(to, TROUBLE, str(trouble))
        return
    write_outcome(outcome, to)


if __name__ == "__main__":
    main()
