"""One call of `torchd tune`, told in order: inputs, archive, daemon, search, results."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console

from torchd_clients.bench.daemon import StartedDaemon, started_daemon
from torchd_clients.bench.target import Input, Target
from torchd_clients.client import Client
from torchd_clients.credentials import KeyFile
from torchd_clients.tables import console
from torchd_clients.tune import outcome, plot, state
from torchd_clients.tune.baseline import learn_default
from torchd_clients.tune.config_file import FILE
from torchd_clients.tune.inputs import read_inputs
from torchd_clients.tune.machine import machine_of, processor
from torchd_clients.tune.plan import Plan
from torchd_clients.tune.progress import shown
from torchd_clients.tune.search import Result, Search
from torchd_clients.tune.served import Served
from torchd_clients.tune.slo import Slo, read_slo
from torchd_clients.tune.space import Space, as_json, space_of
from torchd_clients.tune.table import headline, payload_of, trials_table
from torchd_clients.tune.trial import Examiner
from torchd_clients.tune.variants import Variants

PICTURE = "tune.png"
_WIDTH_OF_A_PIPE = 240
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for on the command line. Times in seconds."""

    archive: Path
    inputs: tuple[Path, ...]
    slo: str
    space: tuple[str, ...]
    allowed: tuple[str, ...]
    output: Path
    packed: Path | None
    budget: float
    trial_seconds: float
    load_seconds: float
    is_fresh: bool


def run(request: Request, *, as_json: bool = False) -> None:
    """Searches, prints and writes the results; raises TuneFailed, BenchError, TorchdError or OSError."""
    slo, inputs = read_slo(request.slo), read_inputs(request.inputs)
    request.output.mkdir(parents=True, exist_ok=True)
    known = state.open_state(request.output, _asked(request, slo, inputs), fresh=request.is_fresh)
    work = (request.output / "work").absolute()
    shutil.rmtree(work, ignore_errors=True)
    try:
        variants = Variants(request.archive.absolute(), work, inputs)
        result, space, ended_by = _search(request, slo, inputs, known, variants)
        written = _write(request, slo, known, result, variants)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if as_json:
        document = _summary(result, slo, known) | {"ended_by": ended_by, "written": [str(path) for path in written]}
        print(json.dumps(document, indent=2))
        return
    out, payload = console(), payload_of([len(one.body) for one in inputs])
    table = trials_table([*known.trials, *known.confirmed], result, space, slo, payload)
    # Wider than other commands' tables: twelve columns, and a reason in the last.
    wide = out if sys.stdout.isatty() else Console(width=_WIDTH_OF_A_PIPE, markup=False, highlight=False, emoji=False)
    wide.print(table)
    out.print(f"{space.machine.cores} cores, {processor(_cpuinfo())}", soft_wrap=True)
    if not known.is_comparable:
        out.print(
            "The default's own answers change from one time to the next: types and compile were left as they are."
        )
    out.print(f"{len(known.trials)} trials in {known.spent_seconds:.0f} s; ended because {ended_by}.")
    out.print(headline(result, slo), soft_wrap=True)
    out.print(f"Written: {', '.join(map(str, written))}", soft_wrap=True)


def _search(
    request: Request, slo: Slo, inputs: tuple[Input, ...], known: state.State, variants: Variants
) -> tuple[Result, Space, str]:
    with started_daemon(variants.store) as daemon, _client(daemon) as client:
        machine = machine_of(client.devices(), _cpuinfo())
        compiled = ["compile=own"] if "pt2" in variants.config else []  # it compiles by itself
        space = space_of(variants.default, machine, [*compiled, *request.space], request.allowed)
        target = Target("grpc", daemon.grpc_inference, variants.model_name, inputs, token=daemon.token("inference"))
        # A request that takes so long is beyond any bound.
        patience = max(30.0, 20 * slo.bound_ms / 1000)
        server = Served(client, variants, target, load_seconds=request.load_seconds, request_seconds=patience)
        plan = Plan(request.budget, request.trial_seconds)
        with shown(Console(stderr=True), known, slo, request.budget) as told:
            told("the default's answers", None)
            space = learn_default(space, known, server, plan, monotonic)
            variants.samples = len(known.answers)
            search = Search(space, slo, known, plan)
            result = search.run(Examiner(server, slo, known.answers if known.is_comparable else ()), told)
        return result, space, search.ended_by


def _client(daemon: StartedDaemon) -> Client:
    token = KeyFile(daemon.key_file) if daemon.key_file else None
    return Client(daemon.grpc_inference, daemon.grpc_management, token=token)


def _write(request: Request, slo: Slo, known: state.State, result: Result, variants: Variants) -> list[Path]:
    config, picture = request.output / FILE, request.output / PICTURE
    config.write_text(variants.text_of(result.best.setting), encoding="utf-8")
    plot.draw(known.trials, result, slo, f"torchd tune {request.archive.name}", picture)
    written = [config, picture, known.path]
    if request.packed is not None:
        variants.pack(result.best.setting, request.packed.absolute())
        written.append(request.packed)
    return written


def _asked(request: Request, slo: Slo, inputs: tuple[Input, ...]) -> dict[str, Any]:
    return {
        "archive": state.digest(request.archive),
        "inputs": state.digest_of_inputs(inputs),
        "slo": str(slo),
        "space": list(request.space),
        "allow": list(request.allowed),
        "machine": f"{len(os.sched_getaffinity(0))} cores, {processor(_cpuinfo())}",
    }


def _summary(result: Result, slo: Slo, known: state.State) -> dict[str, Any]:
    rivals = [trial for trial in known.trials if trial.setting == result.best.setting] + [result.best]
    lost = {
        str(trial.setting): outcome.why_lost(trial, rivals, slo)
        for trial in outcome.longest([*known.trials, *known.confirmed])
        if trial.setting != result.best.setting
    }
    return {
        "slo": str(slo),
        "best": outcome.as_json(result.best),
        "default": outcome.as_json(result.default),
        "is_better": result.is_better,
        "setting": as_json(result.best.setting),
        "lost": lost,
    }


def _cpuinfo() -> str:
    return _CPUINFO.read_text(errors="replace") if _CPUINFO.exists() else ""
