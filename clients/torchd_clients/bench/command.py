"""The command `torchd bench`."""

from __future__ import annotations

import mimetypes
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from torchd_clients.bench.compare_command import bench_compare

if TYPE_CHECKING:
    from torchd_clients.bench.load import Load
    from torchd_clients.bench.measure import OnRepeat
    from torchd_clients.bench.measurement import Point
    from torchd_clients.bench.report.rows import Row
    from torchd_clients.bench.server import Server
    from torchd_clients.bench.target import Input, Protocol

_UNUSABLE, _NOTHING_ANSWERED = 2, 1
_FOUND = "the daemon you run, else 127.0.0.1:{}"
_SECONDS = 5.0
# TorchServe's suite warms up with a tenth of what it measures.
_WARMUP_PART = 10
_FREE_CLIENTS = 256
_HERE = "A daemon that it starts"
_THERE = "A server that runs"


class Protocols(StrEnum):
    """What is asked over."""

    GRPC = "grpc"
    REST = "rest"
    BOTH = "both"


_OVER: dict[Protocols, tuple[Protocol, ...]] = {
    Protocols.GRPC: ("grpc",),
    Protocols.REST: ("rest",),
    Protocols.BOTH: ("grpc", "rest"),
}


def add_commands(app: typer.Typer) -> None:
    """Adds it, and the one that compares two runs of it, to the command line of `torchd`."""
    app.command()(bench)
    app.command()(bench_compare)


def bench(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Name of a model, or an archive to start a daemon with.", show_default=False
        ),
    ] = "",
    files: Annotated[
        list[str] | None,
        typer.Option("--input", "-T", metavar="[NAME=]FILE", help="What is sent; several are sent in turn."),
    ] = None,
    suite: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="In place of MODEL: the YAML of TorchServe's benchmark suite, all of it."),
    ] = None,
    content_type: Annotated[
        str | None, typer.Option(help="Media type of the inputs over REST.", show_default="by the file's name")
    ] = None,
    version: Annotated[str, typer.Option(help="Version of the model.", show_default="the default version")] = "",
    protocol: Annotated[Protocols, typer.Option(help="What it is asked over.")] = Protocols.BOTH,
    clients: Annotated[
        str | None,
        typer.Option(metavar="N[,N...]", help="Clients that each wait for their answer.", show_default="1,8,32"),
    ] = None,
    rate: Annotated[
        float, typer.Option(min=0.0, help="Ask so often a second at random times, however long answers take.")
    ] = 0.0,
    requests: Annotated[int, typer.Option(min=0, help="End after so many requests.")] = 0,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="End after so long.", show_default="5, unless --requests is given")
    ] = None,
    warmup: Annotated[float, typer.Option(min=0.0, help="Seconds of the same load that do not count.")] = 1.0,
    warmup_requests: Annotated[int, typer.Option(min=0, help="Requests that do not count.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each load; the median one is kept.")] = 3,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 120.0,
    expect: Annotated[str, typer.Option(metavar="TEXT", help="An answer without it is an error.")] = "",
    processes: Annotated[int, typer.Option(min=0, help="Processes that ask; 0: as many as it takes.")] = 0,
    connections: Annotated[int, typer.Option(min=1, help="gRPC connections of each process.")] = 1,
    workers: Annotated[
        int, typer.Option(min=0, help="Workers; 0 leaves it to the archive.", rich_help_panel=_HERE)
    ] = 0,
    batch_size: Annotated[
        int, typer.Option(min=0, help="Requests at most in a batch; 0: the archive's.", rich_help_panel=_HERE)
    ] = 0,
    batch_delay: Annotated[
        int, typer.Option(min=0, help="Milliseconds a batch may wait; 0: the archive's.", rich_help_panel=_HERE)
    ] = 0,
    grpc_inference: Annotated[
        str, typer.Option(metavar="HOST:PORT", show_default=_FOUND.format(7070), rich_help_panel=_THERE)
    ] = "",
    inference: Annotated[
        str, typer.Option(metavar="HOST:PORT", show_default=_FOUND.format(8080), rich_help_panel=_THERE)
    ] = "",
    management: Annotated[
        str, typer.Option(metavar="HOST:PORT", show_default=_FOUND.format(8081), rich_help_panel=_THERE)
    ] = "",
    metrics: Annotated[
        str, typer.Option(metavar="HOST:PORT", show_default=_FOUND.format(8082), rich_help_panel=_THERE)
    ] = "",
    pid: Annotated[
        int,
        typer.Option(min=0, help="Its process, to see what it uses.", show_default="found", rich_help_panel=_THERE),
    ] = 0,
    token: Annotated[
        str,
        typer.Option(
            envvar="TORCHD_TOKEN",
            help="Token to show.",
            show_default="those in the daemon's key file",
            rich_help_panel=_THERE,
        ),
    ] = "",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write a page, pictures, JSON, and ab_report.csv and report.md as TorchServe's suite does.",
        ),
    ] = None,
    with_histograms: Annotated[bool, typer.Option("--histograms", help="Show the daemon's histograms.")] = False,
) -> None:
    """Ask a model as fast as it answers, or at a rate, and show throughput, latencies, errors and what it cost.

    Examples:

    torchd bench model.mar -T sample.json --workers 2 --batch-size 8 --batch-delay 5

    torchd bench bert -T short.txt -T long.txt --protocol grpc --clients 1,16,64 --seconds 10

    torchd bench bert -T short.txt --rate 200 --seconds 30 --json run.json

    torchd bench --suite benchmark.yaml --report results

    `torchd bench-compare OLD.json NEW.json` says what changed between two runs.

    Exit code: 0, 1 where a load had no good answer at all, 2 where nothing could be measured.
    """
    from torchd_clients.bench.errors import BenchError
    from torchd_clients.bench.load import Load

    _check_combination(model, files, suite, clients, rate, (workers, batch_size, batch_delay))
    if report is not None:
        _prepare(report)
    if seconds is None:
        seconds = 0.0 if requests or suite else _SECONDS
    load = Load(
        rate=rate,
        requests=requests,
        seconds=seconds,
        warmup_requests=warmup_requests,
        warmup_seconds=warmup,
        timeout=timeout,
        processes=processes,
        connections=connections,
    )
    how = _How(_OVER[protocol], repeats, expect)
    try:
        if suite is not None:
            rows = _measure_suite(suite, load, how, content_type)
        else:
            setting = (workers, batch_size, batch_delay or None)
            named = (grpc_inference, inference, management, metrics, token, pid)
            loads = [replace(load, clients=count) for count in _clients(clients, rate)]
            rows = _measure_model(model, version, setting, named, loads, how, files or [], content_type)
    except BenchError as error:
        _refuse(str(error))
    _show(rows, with_histograms, suite is not None)
    _write(rows, json_file, report)
    if any(row.point is None or not row.point.measurement.answered for row in rows if not row.is_skipped):
        raise typer.Exit(_NOTHING_ANSWERED)


@dataclass(frozen=True, slots=True)
class _How:
    """How each load is asked."""

    over: tuple[Protocol, ...]
    repeats: int
    expect: str


def _check_combination(
    model: str,
    files: Sequence[str] | None,
    suite: Path | None,
    clients: str | None,
    rate: float,
    setting: tuple[int, int, int],
) -> None:
    if suite is None:
        if not model:
            _refuse("it takes the name of a model or an archive, or --suite FILE")
        if not files:
            _refuse(f"nothing to ask {model}: say with --input FILE what is sent")
    elif model or files or clients is not None or rate or any(setting):
        _refuse(
            "--suite says what is measured: MODEL, --input, --clients, --rate, --workers, --batch-size and "
            "--batch-delay are in its file"
        )


def _prepare(report: Path) -> None:
    """Says before hours of measuring, not behind them, that there will be no report."""
    if find_spec("matplotlib") is None:
        _refuse("--report needs matplotlib, which is not installed: pip install 'torchd[bench]'")
    try:
        report.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _refuse(f"--report {report}: {error.strerror}")


def _measure_model(
    model: str,
    version: str,
    setting: tuple[int, int, int | None],
    named: tuple[str, str, str, str, str, int],
    loads: Sequence[Load],
    how: _How,
    files: Sequence[str],
    content_type: str | None,
) -> list[Row]:
    from torchd_clients.bench.report.rows import row_of
    from torchd_clients.bench.served import Named, Setting, is_archive, running_server, served_archive

    inputs = [_input(file, content_type) for file in files]
    input_name = ", ".join(Path(file).name for file in files)
    archive = ""
    with ExitStack() as stack:
        if is_archive(model):
            archive = model
            with _said(f"starting a daemon for {model}"):
                server, name = stack.enter_context(served_archive(Path(model), Setting(*setting)))
        else:
            server, name = running_server(Named(*named), os.environ), model
        points = _measure_all(server, name, version, inputs, loads, input_name, how)
    return [row_of(point, archive) for point in points]


def _measure_suite(file: Path, load: Load, how: _How, content_type: str | None) -> list[Row]:
    from torchd_clients.bench.suite import Case, read_suite
    from torchd_clients.bench.suite_run import run_suite

    def measure(server: Server, name: str, case: Case) -> tuple[Point, ...]:
        asked = replace(load, clients=case.clients, requests=load.requests or case.requests)
        if not load.warmup_requests:
            # As TorchServe's suite; what warms up by time has a bound all the same.
            asked = replace(asked, warmup_requests=max(1, asked.requests // _WARMUP_PART))
        inputs = [_input(str(path), content_type) for path in case.inputs]
        return _measure_all(server, name, "", inputs, [asked], ", ".join(path.name for path in case.inputs), how)

    read = read_suite(file)
    for note in read.notes:
        _tell(f"note: {note}")
    return run_suite(read.cases, measure, _said, _tell)


def _measure_all(
    server: Server,
    model: str,
    version: str,
    inputs: Sequence[Input],
    loads: Sequence[Load],
    input_name: str,
    how: _How,
) -> tuple[Point, ...]:
    from torchd_clients.bench.measure import measure_point
    from torchd_clients.bench.target import Target

    points = []
    for protocol in how.over:
        target = Target(
            protocol,
            server.address(protocol),
            model,
            tuple(inputs),
            version,
            server.inference_token,
            expect=how.expect.encode(),
        )
        for load in loads:
            label = f"{protocol}, {load.rate:g}/s" if load.rate else f"{protocol}, {load.clients} clients"
            with _progress(label, load, how.repeats) as tell:
                points.append(measure_point(server, target, load, how.repeats, input_name, tell))
    return tuple(points)


@contextmanager
def _progress(label: str, load: Load, repeats: int) -> Iterator[OnRepeat]:
    """A bar over all runs of one load, and what has come so far."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from torchd_clients.bench.run import Progress as Told

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=repeats, said="")

        def tell(number: int, told: Told) -> None:
            by_time = told.seconds / load.seconds if load.seconds else 0.0
            by_count = (told.answered + told.failed) / load.requests if load.requests else 0.0
            done = min(1.0, max(by_time, by_count)) if told.phase == "measuring" else 0.0
            said = f"run {number} of {repeats}: {told.phase}, {told.answered} answers"
            bar.update(task, completed=number - 1 + done, said=said + (f", {told.failed} errors" * bool(told.failed)))

        yield tell


@contextmanager
def _said(text: str) -> Iterator[None]:
    from rich.console import Console

    with Console(stderr=True, markup=False).status(text):
        yield


def _clients(told: str | None, rate: float) -> list[int]:
    if told is None:
        return [_FREE_CLIENTS] if rate else [1, 8, 32]
    try:
        counts = [int(one) for one in told.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        _refuse(f"--clients {told}: it takes numbers from 1, as in 1,8,32")
    return counts


def _input(file: str, content_type: str | None) -> Input:
    from torchd_clients.bench.target import Input

    name, equals, path = file.partition("=")
    if not equals or "/" in name:
        # The key under which a handler finds the body of a REST request: the same work on both.
        name, path = "body", file
    try:
        body = Path(path).read_bytes()
    except OSError as error:
        _refuse(f"cannot read {path}: {error.strerror}")
    return Input(body, content_type or mimetypes.guess_type(path)[0] or "application/octet-stream", name)


def _show(rows: Sequence[Row], with_histograms: bool, is_suite: bool) -> None:
    from torchd_clients.bench.report.rows import points_of
    from torchd_clients.bench.tables import histograms, results, suite_results, terminal

    out, points = terminal(), points_of(rows)
    out.print(suite_results(rows) if is_suite else results(points))
    if with_histograms:
        out.print(histograms(points))


def _write(rows: Sequence[Row], json_file: Path | None, report: Path | None) -> None:
    from torchd_clients.bench.points import write_points
    from torchd_clients.bench.report.rows import points_of

    about = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": _version(),
        "command": shlex.join(["torchd", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
    }
    if json_file is not None:
        write_points(json_file, points_of(rows), about)
    if report is not None:
        from torchd_clients.bench.report.write import write_report

        written = write_report(report, rows, about)
        _tell(f"written: {', '.join(map(str, written))}")


def _version() -> str:
    try:
        return version_of("torchd")
    except PackageNotFoundError:
        return "not installed as a package"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _refuse(message: str) -> NoReturn:
    print(f"torchd: {message}", file=sys.stderr)
    raise typer.Exit(_UNUSABLE)
