"""Asks a load in processes of its own, and puts together what they counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader, RawIOBase
from select import select
from time import monotonic
from typing import IO, cast

from torchd_clients.bench.errors import BenchError, NoServer
from torchd_clients.bench.job import PROGRESS, READY, RESULT, TROUBLE, WARM, Job, Outcome, read_outcome, write_job
from torchd_clients.bench.load import Load
from torchd_clients.bench.measurement import Measurement
from torchd_clients.bench.target import Target
from torchd_clients.bench.wire import address, fields, requests

# Between the word that all may begin and the beginning: it must have reached each of them.
_LEAD = 0.02
# A process that uses so much of its core cannot ask faster, whatever the server could.
BUSY = 0.9
_PROCESSES_AT_MOST = 8


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load is. `phase` is "connecting", "warming up" or "measuring"."""

    phase: str
    answered: int
    failed: int
    seconds: float


OnProgress = Callable[[Progress], None]


def run_load(target: Target, load: Load, on_progress: OnProgress | None = None) -> Measurement:
    """Asks the load and gives what was measured. Raises BenchError where it could not be asked.

    With `processes` 0 it begins with one and takes twice as many as long as they are the bottleneck and there are
    cores for them.
    """
    if load.processes:
        return _run(target, load, load.processes, on_progress)
    most = min(_PROCESSES_AT_MOST, max(1, len(os.sched_getaffinity(0)) // 2), load.clients)
    count = 1
    while True:
        measured = _run(target, load, count, on_progress)
        if count == most or not is_client_bound(measured):
            return measured
        count = min(2 * count, most)


def is_client_bound(measured: Measurement) -> bool:
    """Whether the processes that asked were the bottleneck: what was measured is then theirs, not the server's."""
    return measured.client_cpu_seconds >= BUSY * measured.seconds * measured.client_processes


def _run(target: Target, load: Load, count: int, on_progress: OnProgress | None) -> Measurement:
    if not target.inputs:
        raise BenchError(f"nothing to ask {target.model}: it was given no input")
    if load.requests <= 0 and load.seconds <= 0:
        raise BenchError("a load without an end: it needs requests or seconds")
    count = max(1, min(count, load.clients, load.requests or load.clients))
    encoded = requests(target)
    shares = [
        Job(
            target.protocol,
            address(target.address),
            share_of(load, number, count),
            encoded[number % len(encoded) :] + encoded[: number % len(encoded)],
            fields(target) if target.protocol == "grpc" else (),
            target.expect,
        )
        for number in range(count)
    ]
    with ExitStack() as stack:
        processes = [stack.enter_context(_load_process(job)) for job in shares]
        outcomes = _conduct(processes, target, on_progress)
    return merge(outcomes, load)


def share_of(load: Load, number: int, count: int) -> Load:
    """What process `number` of `count` asks: the sum of the shares is the load."""

    def part(whole: int) -> int:
        return whole // count + (number < whole % count)

    return replace(
        load,
        clients=part(load.clients),
        requests=part(load.requests),
        warmup_requests=part(load.warmup_requests),
        rate=load.rate / count,
        seed=load.seed * 1000 + number,
    )


def merge(outcomes: Sequence[Outcome], load: Load) -> Measurement:
    """One measurement of what all processes counted."""
    latencies = array("d", sorted(value for one in outcomes for value in one.latencies_ms))
    errors: Counter[str] = Counter()
    for one in outcomes:
        errors.update(one.errors)
    return Measurement(
        seconds=max(one.end for one in outcomes) - min(one.begin for one in outcomes),
        latencies_ms=latencies,
        errors=dict(errors.most_common()),
        client_cpu_seconds=sum(one.cpu_seconds for one in outcomes),
        client_processes=len(outcomes),
    )


class _LoadProcess:
    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.process = process
        self.errors = errors
        # Not buffered: a line that has been read but not looked at would not wake `select`.
        self.output: RawIOBase = cast(RawIOBase, cast(BufferedReader, process.stdout).raw)
        self.answered = self.failed = 0
        self.said: set[str] = set()
        self.outcome: Outcome | None = None

    def tell(self, line: object) -> None:
        """Writes one line to it."""
        if self.process.stdin is not None:
            self.process.stdin.write(json.dumps(line).encode() + b"\n")
            self.process.stdin.flush()

    def listen(self, target: Target) -> None:
        """Takes the next thing it says."""
        text = self.output.readline()
        if not text:
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace").strip()
            raise BenchError(f"a load process ended with exit code {self.process.wait()}: {said or 'it said nothing'}")
        line = json.loads(text)
        self.said.add(line[0])
        if line[0] == PROGRESS:
            _, self.answered, self.failed = line
        elif line[0] == TROUBLE:
            raise NoServer(f"no server at {target.address}: {line[1]}")
        elif line[0] == RESULT:
            self.outcome = read_outcome(line, self.output)


@contextmanager
def _load_process(job: Job) -> Iterator[_LoadProcess]:
    command = [sys.executable, "-m", "torchd_clients.bench.load_process"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, bufsize=-1
        )
        try:
            one = _LoadProcess(process, errors)
            if process.stdin is not None:
                write_job(job, process.stdin)
            yield one
        finally:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            process.wait()


def _conduct(processes: Sequence[_LoadProcess], target: Target, on_progress: OnProgress | None) -> list[Outcome]:
    """Lets all warm up, begin at one moment, and end."""
    phases = {READY: "connecting", WARM: "warming up", RESULT: "measuring"}
    for word, phase in phases.items():
        began = monotonic()
        while waiting := [one for one in processes if word not in one.said]:
            # One line is read from each that has any: what they write is a line at a time, flushed.
            for readable in select([one.output for one in waiting], [], [])[0]:
                next(one for one in waiting if one.output is readable).listen(target)
            if on_progress is not None:
                answered, failed = (sum(getattr(one, name) for one in processes) for name in ("answered", "failed"))
                on_progress(Progress(phase, answered, failed, monotonic() - began))
        if word == WARM:
            # Said just before it is so: who reads a meter at this moment leaves the warm-up out.
            if on_progress is not None:
                on_progress(Progress("measuring", 0, 0, 0.0))
            begin = monotonic() + _LEAD
            for one in processes:
                one.tell(begin)
    return [one.outcome for one in processes if one.outcome is not None]
