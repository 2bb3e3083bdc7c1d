"""A text model in a loop, in processes of its own: what the machine does of this work without a server around it."""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.models import SERVED, loaded_model

_READY_WITHIN = 120.0
# A process is given work for so many seconds and may be late by this.
_LATE_AT_MOST = 60.0


class BareModel:
    """Processes that have the model, each with one compute thread, and run batches when told to."""

    def __init__(self, pipes: Sequence[Connection]) -> None:
        self._pipes = pipes

    def throughput(self, seconds: float) -> float:
        """Texts a second of all processes together, their tokens and their answers' JSON included."""
        for pipe in self._pipes:
            pipe.send(seconds)
        return sum(_received(pipe, seconds + _LATE_AT_MOST) for pipe in self._pipes)


@contextmanager
def bare_model(source: Path, bodies: Sequence[bytes], batch_size: int, processes: int) -> Iterator[BareModel]:
    """The model of the folder `source`, until the block ends."""
    spawn = multiprocessing.get_context("spawn")
    pipes = [spawn.Pipe() for _ in range(processes)]
    running = [
        spawn.Process(target=_run, args=(theirs, source, tuple(bodies), batch_size), daemon=True) for _, theirs in pipes
    ]
    for process in running:
        process.start()
    try:
        for ours, theirs in pipes:
            theirs.close()
            _received(ours, _READY_WITHIN)
        yield BareModel([ours for ours, _ in pipes])
    finally:
        for process in running:
            process.kill()
            process.join()


def _received(pipe: Connection, within: float) -> float:
    if not pipe.poll(within):
        raise TimeoutError(f"the bare model said nothing within {within:g} s")
    return float(pipe.recv())


def _run(pipe: Connection, source: Path, bodies: Sequence[bytes], batch_size: int) -> None:
    import torch

    from torchd_workers.loader import SHIM

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    sys.path[:0] = [SHIM, str(SERVED)]
    handler = importlib.import_module("text_handler").TextScores()
    handler.device = torch.device("cpu")
    handler.model = loaded_model(source)
    batches = [
        [{"body": bodies[(first + row) % len(bodies)]} for row in range(batch_size)]
        for first in range(0, len(bodies), batch_size)
    ]
    _loop(handler, batches, 0.0)
    pipe.send(0.0)
    while True:
        pipe.send(_loop(handler, batches, pipe.recv()))


def _loop(handler: Any, batches: Sequence[list[dict[str, bytes]]], seconds: float) -> float:
    """Texts a second; the batches in turn, one at the least."""
    done, started = 0, time.perf_counter()
    while True:
        for batch in batches:
            handler.postprocess(handler.inference(handler.preprocess(batch)))
            done += len(batch)
            elapsed = time.perf_counter() - started
            if elapsed >= seconds:
                return done / elapsed
