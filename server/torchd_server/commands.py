"""The shell commands of `torchd` as typer shows them. Other packages add theirs through the entry point group
`torchd.commands`: the server finds them by name and imports nothing above itself."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import uuid
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from torchd_archiver import cli as archiver_cli
from torchd_protos.frames import Call, Header, Part
from torchd_server import daemon, errors, logs, start, switch_commands

HELP = "Serves PyTorch models over gRPC and REST."
NEXT = (
    "Begin with: torchd archive --help to pack a model, torchd serve --model-store DIR to start the daemon, then "
    "torchd register MODEL.mar and torchd predict MODEL -T FILE."
)


def torchd() -> typer.Typer:
    """The whole command, with what other packages add to it."""
    app = typer.Typer(
        name="torchd",
        help=HELP,
        epilog=NEXT,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    # argparse reads the flags of these two.
    theirs = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    app.command("serve", help="Run the daemon until SIGTERM or Ctrl-C.", context_settings=theirs)(_serve)
    app.command("archive", help="Pack a model, with torch-model-archiver's flags.", context_settings=theirs)(_archive)
    app.command("run")(run)
    switch_commands.add_commands(app)
    for entry_point in entry_points(group="torchd.commands"):
        entry_point.load()(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"torchd {start.VERSION}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """The options of `torchd` itself."""


def _serve(context: typer.Context) -> None:
    start.serve(context.args)


def _archive(context: typer.Context) -> None:
    raise typer.Exit(archiver_cli.main(context.args))


def run(
    archive: Annotated[Path, typer.Argument(help="A .mar file, a .tar.gz or a model folder.")],
    file: Annotated[Path, typer.Option("-T", "--file", help="What the handler is given; - is standard input.")],
    content_type: Annotated[str, typer.Option(help="Media type of the file; says how it is decoded.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds the answer may take.")] = 120.0,
) -> None:
    """Send one request through a real worker, without a daemon: for someone writing a handler."""
    if not archive.exists():
        print(f"torchd: {archive} does not exist", file=sys.stderr)
        raise typer.Exit(1)
    try:
        body = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        print(f"torchd: {file}: {error.strerror}", file=sys.stderr)
        raise typer.Exit(1) from error
    call = Call(
        request_id=str(uuid.uuid4()),
        headers=[Header("Content-Type", content_type)] if content_type else [],
        parts=[Part("body", content_type, body)],
        timeout_ms=int(timeout * 1000),
    )
    settings = replace(start.defaults("torchd", os.environ), model_store=archive.absolute().parent)
    logs.configure("text", "info")
    logging.getLogger("torchd_server").setLevel(logging.CRITICAL)  # what the handler says is enough
    try:
        reply = asyncio.run(daemon.run_once(settings, archive.name, call))
    except errors.TorchdError as error:
        traceback = getattr(error, "traceback", "")
        print(f"{traceback}torchd: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    sys.stdout.buffer.write(bytes(reply.body))
    sys.stdout.buffer.flush()
