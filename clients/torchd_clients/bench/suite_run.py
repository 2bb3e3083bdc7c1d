"""Measures the cases of a suite, each setting on a daemon of its own; one that cannot be is a row that says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from itertools import groupby

from torchd_clients.bench.daemon import started_daemon
from torchd_clients.bench.errors import BenchError
from torchd_clients.bench.measurement import Point
from torchd_clients.bench.report.rows import SKIPPED, Row
from torchd_clients.bench.served import Setting, served_archive
from torchd_clients.bench.server import Server
from torchd_clients.bench.suite import Case, Processor

# Measures one case on a server that has it, over each protocol asked for.
Measure = Callable[[Server, str, Case], Sequence[Point]]
# Shows what is being waited for.
Said = Callable[[str], AbstractContextManager[None]]


def run_suite(cases: Sequence[Case], measure: Measure, said: Said, tell: Callable[[str], None]) -> list[Row]:
    """A row for each case and protocol, in order; `tell` hears of each setting as its turn comes."""
    devices = _devices(cases, said)
    rows: list[Row] = []
    groups = [list(group) for _, group in groupby(cases, key=lambda case: case.served_as)]
    for number, group in enumerate(groups, 1):
        case = group[0]
        if why := _unusable(case.processor, devices):
            tell(f"{number} of {len(groups)}: {case}: {SKIPPED}{why}")
            rows += [_missing(one, f"{SKIPPED}{why}") for one in group]
            continue
        tell(f"{number} of {len(groups)}: {case}")
        rows += _served(group, measure, said)
    return rows


def _served(group: Sequence[Case], measure: Measure, said: Said) -> Iterator[Row]:
    case, left = group[0], list(group)
    setting = Setting(case.workers, case.batch_size, case.batch_delay_ms, _config(case.processor))
    with ExitStack() as stack:
        try:
            with said(f"starting a daemon for {case}"):
                server, name = stack.enter_context(served_archive(case.archive, setting))
            while left:
                # Named as the file names it: two modes of one archive are two models in the report.
                points = [replace(point, model=case.group) for point in measure(server, name, left[0])]
                yield from (_measured(left[0], point) for point in points)
                left.pop(0)
        except BenchError as error:
            yield from (_missing(one, f"failed: {error}") for one in left)


def _devices(cases: Sequence[Case], said: Said) -> dict[str, int]:
    """How many there are of each kind beside the CPU, by a daemon's own look; not asked where no case wants any."""
    if all(case.processor.device == "cpu" for case in cases):
        return {}
    from torchd_clients.client import Client

    with said("looking for devices"), started_daemon() as daemon:
        with Client(daemon.grpc_inference, daemon.grpc_management, token=daemon.token("management")) as client:
            kinds = [device.device_type for device in client.devices().devices]
    return {kind: kinds.count(kind) for kind in kinds}


def _unusable(processor: Processor, devices: dict[str, int]) -> str:
    if processor.device == "cpu":
        return ""
    if processor.device != "gpu":
        return f"{processor.device} is not measured by a suite; serve it and run `torchd bench MODEL`"
    found = devices.get("gpu", 0)
    if not found:
        return "this machine has no GPU"
    return f"this machine has {found} GPUs, not {processor.gpus}" if processor.gpus > found else ""


def _config(processor: Processor) -> tuple[str, ...]:
    if processor.device == "cpu":
        return ("number_of_gpu=0",)
    return (f"number_of_gpu={processor.gpus}",) if processor.gpus else ()


def _measured(case: Case, point: Point) -> Row:
    return Row(
        group=case.group,
        archive=str(case.archive),
        input=_input(case),
        protocol=point.protocol,
        device=point.device or case.processor.device,
        workers=point.workers,
        batch_size=point.batch_size,
        batch_delay_ms=point.batch_delay_ms,
        clients=point.clients,
        requests=case.requests,
        point=point,
    )


def _missing(case: Case, why: str) -> Row:
    return Row(
        group=case.group,
        archive=str(case.archive),
        input=_input(case),
        protocol="",
        device=case.processor.device,
        workers=case.workers,
        batch_size=case.batch_size,
        batch_delay_ms=case.batch_delay_ms,
        clients=case.clients,
        requests=case.requests,
        why=why,
    )


def _input(case: Case) -> str:
    return ", ".join(map(str, case.inputs))
