"""The command `torchd bench`."""

from __future__ import annotations

import mimetypes
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from torchd_clients.bench.load import Load
    from torchd_clients.bench.measure import OnRepeat
    from torchd_clients.bench.measurement import Point
    from torchd_clients.bench.server import Server
    from torchd_clients.bench.target import Input, Protocol

_UNUSABLE, _NOTHING_ANSWERED = 2, 1
_FOUND = "the daemon you run, else 127.0.0.1:{}"
_SECONDS = 5.0
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
    """Adds it to the command line of `torchd`."""
    app.command()(bench)


def bench(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name of a model, or an archive to start a daemon with.")
    ],
    files: Annotated[
        list[str],
        typer.Option("--input", "-T", metavar="[NAME=]FILE", help="What is sent; several are sent in turn."),
    ],
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
    report: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the report there.")] = None,
    with_histograms: Annotated[bool, typer.Option("--histograms", help="Show the daemon's histograms.")] = False,
) -> None:
    """Ask a model as fast as it answers, or at a rate, and show throughput, latencies, errors and what it cost.

    Examples:

    torchd bench model.mar -T sample.json --workers 2 --batch-size 8 --batch-delay 5

    torchd bench bert -T short.txt -T long.txt --protocol grpc --clients 1,16,64 --seconds 10

    torchd bench bert -T short.txt --rate 200 --seconds 30 --json run.json

    Exit code: 0, 1 where a load had no good answer at all, 2 where nothing could be measured.
    """
    from torchd_clients.bench.errors import BenchError
    from torchd_clients.bench.load import Load
    from torchd_clients.bench.served import Named, Setting, is_archive, running_server, served_archive

    if seconds is None:
        seconds = 0.0 if requests else _SECONDS
    loads = [
        Load(
            clients=count,
            rate=rate,
            requests=requests,
            seconds=seconds,
            warmup_requests=warmup_requests,
            warmup_seconds=warmup,
            timeout=timeout,
            processes=processes,
            connections=connections,
        )
        for count in _clients(clients, rate)
    ]
    inputs = [_input(file, content_type) for file in files]
    input_name = ", ".join(Path(file).name for file in files)
    over = _OVER[protocol]
    try:
        with ExitStack() as stack:
            if is_archive(model):
                with _said(f"starting a daemon for {model}"):
                    server, name = stack.enter_context(
                        served_archive(Path(model), Setting(workers, batch_size, batch_delay))
                    )
            else:
                named = Named(grpc_inference, inference, management, metrics, token, pid)
                server, name = running_server(named, os.environ), model
            points = _measure_all(server, name, version, over, inputs, loads, repeats, input_name, expect)
    except BenchError as error:
        _refuse(str(error))
    _show(points, with_histograms)
    _write(points, json_file, report)
    if any(not point.measurement.answered for point in points):
        raise typer.Exit(_NOTHING_ANSWERED)


def _measure_all(
    server: Server,
    model: str,
    version: str,
    over: Sequence[Protocol],
    inputs: Sequence[Input],
    loads: Sequence[Load],
    repeats: int,
    input_name: str,
    expect: str,
) -> tuple[Point, ...]:
    from torchd_clients.bench.measure import measure_point
    from torchd_clients.bench.target import Target

    points = []
    for protocol in over:
        target = Target(
            protocol,
            server.address(protocol),
            model,
            tuple(inputs),
            version,
            server.inference_token,
            expect=expect.encode(),
        )
        for load in loads:
            label = f"{protocol}, {load.rate:g}/s" if load.rate else f"{protocol}, {load.clients} clients"
            with _progress(label, load, repeats) as tell:
                points.append(measure_point(server, target, load, repeats, input_name, tell))
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


def _show(points: Sequence[Point], with_histograms: bool) -> None:
    from torchd_clients.bench.tables import histograms, results, terminal

    out = terminal()
    out.print(results(points))
    if with_histograms:
        out.print(histograms(points))


def _write(points: Sequence[Point], json_file: Path | None, report: Path | None) -> None:
    from torchd_clients.bench.points import write_points

    about = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["torchd", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
    }
    files = [json_file] if json_file is not None else []
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        files.append(report / "bench.json")
    for file in files:
        write_points(file, points, about)


def _refuse(message: str) -> NoReturn:
    print(f"torchd: {message}", file=sys.stderr)
    raise typer.Exit(_UNUSABLE)
