"""Runs one case: all servers are up, and are asked in turn, so that what the machine does meanwhile hits all alike."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import servers
from benchmarks.answers import Difference, compare
from benchmarks.bare.text_model import bare_model
from benchmarks.cases import Case
from benchmarks.models import make, source_of
from benchmarks.servers import Running, on_cores
from benchmarks.torchserve import torchserve
from torchd_clients.bench.load import Load
from torchd_clients.bench.measurement import Measurement, Usage
from torchd_clients.bench.run import Progress, run_load
from torchd_clients.bench.target import Input, Protocol, Target
from torchd_clients.bench.usage import UsageMeter

TORCHD, TUNED, TORCHSERVE, BARE = "torchd", "torchd, tuned", "TorchServe", "bare"
WARM_UP_SHARE = 0.3
# TorchServe is warm when it has stopped getting faster, not before ten seconds: Java compiles what it runs. One round
# is enough for the others, and for models.
JAVA_SECONDS_LEAST, JAVA_SECONDS_MOST = 10.0, 25.0
GETTING_FASTER = 1.03
# What takes longer is an error: BERT-base answers 32 clients within some seconds.
PATIENCE_SECONDS = 30.0
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run measures, and with what."""

    cases: tuple[Case, ...]
    protocols: tuple[Protocol, ...]
    seconds: float
    rounds: int
    # The environment with TorchServe; None leaves it out.
    torchserve: Path | None
    has_bare: bool
    folder: Path


@dataclass(frozen=True, slots=True)
class Row:
    """One server at one case over one protocol: medians over the rounds, and every round's throughput."""

    case: str
    protocol: Protocol | str
    server: str
    throughput: float
    rounds: tuple[float, ...]
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    cpu_us: float = 0.0
    memory_mib: float = 0.0
    # The client's share of its core: near 1 it was the bottleneck.
    client_share: float = 0.0
    errors: int = 0
    first_error: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The rows of one case, and how far the answers of tuned torchd are from TorchServe's."""

    rows: tuple[Row, ...]
    difference: Difference | None = None


@dataclass(frozen=True, slots=True)
class _Round:
    throughput: float
    measured: Measurement | None = None
    cpu_us: float = 0.0
    memory_mib: float = 0.0


def run(case: Case, plan: Plan, tell: Tell) -> Outcome:
    """Measures one case."""
    with ExitStack() as stack:
        contest = _Contest(case, plan, tell)
        contest.start(stack)
        for turn in range(plan.rounds):
            contest.round(turn)
        return Outcome(contest.rows(), contest.difference())


class _Contest:
    def __init__(self, case: Case, plan: Plan, tell: Tell) -> None:
        self._case = case
        self._plan = plan
        self._tell = tell
        self._bodies = tuple(case.bodies())
        cores = sorted(os.sched_getaffinity(0))
        # A model may have all cores. What costs the server alone is measured on one, with the clients on another.
        is_pinned = not case.is_text and len(cores) > 1
        self._server_cores = {cores[0]} if is_pinned else None
        self._client_cores = {cores[1]} if is_pinned else None
        self._running: dict[tuple[str, Protocol], Running] = {}
        self._loops: dict[str, Callable[[float], float]] = {}
        self._rounds: dict[tuple[str, str], list[_Round]] = {}

    def start(self, stack: ExitStack) -> None:
        """Starts every server; they end with the stack."""
        case, plan = self._case, self._plan
        folder = plan.folder / "archives"
        archive = make(case.model, folder / "plain", case.serving)
        stack.enter_context(on_cores(self._server_cores))
        self._add(TORCHD, stack.enter_context(servers.torchd(archive)))
        shared = archive
        if case.tuned is not None:
            serving = replace(case.serving, extra=case.tuned)
            shared = make(case.model, folder / "tuned", serving)
            self._add(TUNED, stack.enter_context(servers.torchd(shared)))
        if plan.torchserve is not None:
            self._tell("starting TorchServe")
            started = torchserve(plan.torchserve, shared, self._bodies[0], plan.folder / "torchserve")
            self._add(TORCHSERVE, stack.enter_context(started))
        if plan.has_bare and case.is_text:
            source = source_of(folder / "plain", case.model)
            workers, batch = case.serving.workers, case.serving.batch_size
            self._loops[BARE] = stack.enter_context(bare_model(source, self._bodies, batch, workers)).throughput
        elif plan.has_bare:
            for protocol in plan.protocols:
                echo = servers.bare(protocol, case.model == "echo", plan.folder)
                self._running[BARE, protocol] = stack.enter_context(echo)

    def _add(self, name: str, server: Running) -> None:
        self._running |= {(name, protocol): server for protocol in self._plan.protocols}

    def round(self, turn: int) -> None:
        """Asks every server once over every protocol; every other round in the opposite order."""
        seconds = self._plan.seconds * self._case.stretch
        order = list(self._running.items())
        for (name, protocol), server in order[:: -1 if turn % 2 else 1]:
            self._tell(f"{name}, {protocol}, round {turn + 1}")
            self._rounds.setdefault((name, protocol), []).append(self._asked(name, server, protocol, seconds, turn))
        for name, throughput in self._loops.items():
            self._tell(f"{name}, round {turn + 1}")
            self._rounds.setdefault((name, ""), []).append(_Round(throughput(seconds)))

    def _asked(self, name: str, server: Running, protocol: Protocol, seconds: float, turn: int) -> _Round:
        case = self._case
        inputs = tuple(Input(body) for body in self._bodies)
        target = Target(protocol, server.addresses[protocol], case.model, inputs, expect=case.expect)
        load = Load(case.clients, seconds=seconds, processes=1, timeout=PATIENCE_SECONDS)
        meters: list[UsageMeter] = []

        def begun(progress: Progress) -> None:
            if progress.phase == "measuring" and not meters:
                meters.append(UsageMeter(server.pid))

        with on_cores(self._client_cores):
            if turn == 0:
                is_java = name == TORCHSERVE and not case.is_text
                _warm_up(target, load, *((JAVA_SECONDS_LEAST, JAVA_SECONDS_MOST) if is_java else (0.0, 0.0)))
            measured = run_load(target, replace(load, warmup_seconds=seconds * WARM_UP_SHARE), begun)
            usage = meters[0].read() if meters else Usage()
        asked = max(1, measured.answered + measured.failed)
        return _Round(measured.throughput, measured, 1e6 * usage.cpu_seconds / asked, usage.memory_mib)

    def rows(self) -> tuple[Row, ...]:
        """What was measured."""
        return tuple(_row(self._case.name, name, protocol, rounds) for (name, protocol), rounds in self._rounds.items())

    def difference(self) -> Difference | None:
        """Tuned torchd's answers beside TorchServe's, where both are there."""
        tuned, other = (self._running.get((name, self._plan.protocols[0])) for name in (TUNED, TORCHSERVE))
        if tuned is None or other is None:
            return None
        self._tell("comparing answers")
        path = f"/predictions/{self._case.model}"
        return compare(tuned.addresses["rest"], other.addresses["rest"], path, self._bodies)


def _warm_up(target: Target, load: Load, least_seconds: float, most_seconds: float) -> None:
    """Asks for that long, and on until two rounds in a row were no faster than the best before them."""
    best, slower, began = 0.0, 0, time.monotonic()
    while True:
        throughput = run_load(target, load).throughput
        slower = 0 if throughput > best * GETTING_FASTER else slower + 1
        best = max(best, throughput)
        elapsed = time.monotonic() - began
        if elapsed >= most_seconds or (elapsed >= least_seconds and slower >= 2):
            return


def _row(case: str, server: str, protocol: str, rounds: Sequence[_Round]) -> Row:
    ordered = sorted(rounds, key=lambda one: one.throughput)
    middle = ordered[len(ordered) // 2]
    row = Row(case, protocol, server, middle.throughput, tuple(one.throughput for one in rounds))
    measured = [one.measured for one in rounds if one.measured is not None]
    if middle.measured is None or not measured:
        return row
    errors = [reason for one in measured for reason in one.errors]
    return replace(
        row,
        p50_ms=statistics.median(one.percentile_ms(50) for one in measured),
        p99_ms=statistics.median(one.percentile_ms(99) for one in measured),
        cpu_us=statistics.median(one.cpu_us for one in rounds),
        memory_mib=statistics.median(one.memory_mib for one in rounds),
        client_share=middle.measured.client_cpu_seconds / middle.measured.seconds,
        errors=sum(one.failed for one in measured),
        first_error=errors[0] if errors else "",
    )
