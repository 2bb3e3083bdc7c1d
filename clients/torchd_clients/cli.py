"""The client's commands of `torchd`: predict, models, describe, devices, register, scale, unregister, set-default,
ping, token.

gRPC and rich are imported when a command runs, not with this file: `torchd --help` and `torchd serve` go without.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from torchd_clients.client import Client
    from torchd_clients.credentials import Tls
    from torchd_clients.errors import TorchdError
    from torchd_clients.run_directory import Daemon
    from torchd_protos.management_pb2 import ModelChange, ModelDescription

_FOUND = "the daemon you run, else {}"
Inference = Annotated[
    str | None,
    typer.Option("--grpc-inference", metavar="HOST:PORT", show_default=_FOUND.format("127.0.0.1:7070")),
]
Management = Annotated[
    str | None,
    typer.Option("--grpc-management", metavar="HOST:PORT", show_default=_FOUND.format("127.0.0.1:7071")),
]
Token = Annotated[
    str | None,
    typer.Option(envvar="TORCHD_TOKEN", help="Token to show.", show_default="the one in the daemon's key file"),
]
Ca = Annotated[
    str | None,
    typer.Option(
        "--tls-ca",
        envvar="TORCHD_TLS_CA",
        metavar="PEM",
        help="Speak TLS and believe this authority.",
        show_default="TLS where the daemon you run has it",
    ),
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.", show_default=False)]
Version = Annotated[str | None, typer.Option(help="Version of the model.", show_default="the default version")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds to wait for the answer.", show_default="60")]


def add_commands(app: typer.Typer) -> None:
    """Adds the commands to the command line of `torchd`."""
    for command in (predict, models, describe, devices, register, scale, unregister, set_default, ping, token):
        app.command()(command)


def predict(
    model: Model,
    file: Annotated[
        list[str],
        typer.Option("--file", "-T", metavar="[NAME=]FILE", help="What to send: a file, or - for standard input."),
    ],
    version: Version = None,
    timeout: Timeout = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print each chunk of the answer as it comes.")] = False,
    as_json: Json = False,
    inference: Inference = None,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Send one request to a model and print its answer.

    Several files become the parts of one request; each then has a NAME. A file with a = in its name is ./FILE.
    """
    with _connected(inference=inference, token=token, ca=ca) as client:
        data = _parts(file)
        if stream:
            answers: Iterable[bytes] = client.stream(model, data, version=version, timeout=timeout)
        else:
            answers = [client.predict(model, data, version=version, timeout=timeout)]
        if as_json:
            _print_json_lines(answers)
        else:
            _print_bytes(answers)


def models(as_json: Json = False, management: Management = None, token: Token = None, ca: Ca = None) -> None:
    """Show the registered models: their versions, workers, queues and last failures."""
    with _connected(management=management, token=token, ca=ca) as client:
        described = _describe_all(client)
        if as_json:
            _print_json(described)
        else:
            from torchd_clients.tables import console, models_table

            console().print(models_table(described))


def describe(
    model: Model,
    version: Version = None,
    as_json: Json = False,
    management: Management = None,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Show one model: settings, workers, and the traceback of its last failure. --version all shows every version."""
    with _connected(management=management, token=token, ca=ca) as client:
        described = client.describe(model, version)
        if as_json:
            _print_json(described)
        else:
            from torchd_clients.tables import console, description

            for one in described:
                console().print(description(one))


def devices(as_json: Json = False, management: Management = None, token: Token = None, ca: Ca = None) -> None:
    """Show the devices of the daemon's machine: who holds which, and why there are no others."""
    with _connected(management=management, token=token, ca=ca) as client:
        found = client.devices()
        if as_json:
            _print_json([found])
        else:
            from torchd_clients.device_tables import absences, devices_table
            from torchd_clients.tables import console

            console().print(devices_table(found.devices))
            console().print(absences(found.absent))


def register(
    file: Annotated[str, typer.Argument(help="File name of the archive in the daemon's model store.")],
    name: Annotated[str | None, typer.Option(help="Name to register under.", show_default="the archive's own")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Workers to start; 0 leaves it to the archive.")] = 1,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Requests at most in one batch.")] = None,
    max_batch_delay: Annotated[int | None, typer.Option(min=1, help="Milliseconds a batch may wait to fill.")] = None,
    response_timeout: Annotated[int | None, typer.Option(min=1, help="Seconds a request may take.")] = None,
    startup_timeout: Annotated[int | None, typer.Option(min=1, help="Seconds a worker may take to load.")] = None,
    handler: Annotated[str | None, typer.Option(help="Handler to use instead of the archive's.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait.", show_default="300")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until the workers are ready.")] = True,
    management: Management = None,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Register a model archive and start its workers."""
    with _connected(management=management, token=token, ca=ca) as client, _progress(f"registering {file}"):
        change = client.register(
            file,
            model_name=name,
            initial_workers=workers,
            batch_size=batch_size,
            max_batch_delay=max_batch_delay,
            response_timeout=response_timeout,
            startup_timeout=startup_timeout,
            handler=handler,
            synchronous=wait,
            timeout=timeout,
        )
    typer.echo(f"registered {_workers_of(change)}")


def scale(
    model: Model,
    workers: Annotated[int, typer.Argument(metavar="N", min=0, help="Workers wanted; 0 stops them all.")],
    version: Version = None,
    wait: Annotated[bool, typer.Option(help="Wait until the workers are ready.")] = True,
    management: Management = None,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Change how many workers serve a model."""
    with _connected(management=management, token=token, ca=ca) as client, _progress(f"scaling {model} to {workers}"):
        change = client.scale(model, workers, version=version, synchronous=wait)
    typer.echo(f"scaled {_workers_of(change)}")


def unregister(
    model: Model, version: Version = None, management: Management = None, token: Token = None, ca: Ca = None
) -> None:
    """Remove a version of a model, after its requests have been answered."""
    with _connected(management=management, token=token, ca=ca) as client, _progress(f"unregistering {model}"):
        change = client.unregister(model, version)
    typer.echo(f"unregistered {change.model_name} {change.model_version}")


def set_default(
    model: Model,
    version: Annotated[str, typer.Argument(help="Version that requests get which name none.")],
    management: Management = None,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Make a version the default of its model."""
    with _connected(management=management, token=token, ca=ca) as client:
        change = client.set_default(model, version)
    typer.echo(f"{change.model_version} is now the default version of {change.model_name}")


def ping(inference: Inference = None, token: Token = None, ca: Ca = None) -> None:
    """Ask whether every model has the workers it should have; fails if one has not."""
    with _connected(inference=inference, token=token, ca=ca) as client:
        health = client.ping()
    typer.echo(health)
    if health != "Healthy":
        raise typer.Exit(1)


def token(
    scope: Annotated[
        Literal["inference", "management", "API"], typer.Argument(help="What the token opens.", show_default=False)
    ],
) -> None:
    """Print a token of the daemon that you run: curl -H "Authorization: Bearer $(torchd token inference)" ..."""
    from torchd_clients.run_directory import find_daemon

    daemon = find_daemon(os.environ)
    found = daemon.token(scope) if daemon and daemon.token else None
    if found is None:
        _fail("you run no daemon that asks for tokens, or more than one")
    typer.echo(found)


@contextmanager
def _connected(
    inference: str | None = None, management: str | None = None, token: str | None = None, ca: str | None = None
) -> Iterator[Client]:
    """A client for the addresses given, else for the daemon found; a failure becomes lines for a person."""
    from torchd_clients.client import Client
    from torchd_clients.connection import DEFAULT_INFERENCE, DEFAULT_MANAGEMENT
    from torchd_clients.errors import TorchdError
    from torchd_clients.run_directory import find_daemon

    # A token goes only to the daemon whose file it is from.
    daemon = find_daemon(os.environ, [address for address in (inference, management) if address])
    inference = inference or (daemon.grpc_inference if daemon else DEFAULT_INFERENCE)
    management = management or (daemon.grpc_management if daemon else DEFAULT_MANAGEMENT)
    shown = token or (daemon.token if daemon else None)
    try:
        with Client(inference, management, token=shown, tls=_tls(ca, daemon)) as client:
            yield client
    except TorchdError as error:
        _fail(error.message, _way_out(error))
    except BrokenPipeError:
        raise  # the reader of our output has seen enough; typer ends quietly
    except OSError as error:
        _fail(f"cannot use {error.filename or 'standard input or output'}: {error.strerror}")


def _tls(ca: str | None, daemon: Daemon | None) -> Tls | None:
    """TLS as told, else as the daemon found announces it; a certificate of our own comes from the environment."""
    from torchd_clients.credentials import Tls

    found = Tls(Path(ca).read_bytes()) if ca is not None else daemon.tls if daemon else None
    own = [os.environ.get(variable) for variable in ("TORCHD_TLS_CERTIFICATE", "TORCHD_TLS_KEY")]
    if found is None or not all(own):
        return found
    certificate, key = (Path(path or "").read_bytes() for path in own)
    return Tls(found.ca, found.name, certificate, key)


def _fail(*lines: str) -> NoReturn:
    from torchd_clients.tables import printable

    for line in filter(None, lines):
        typer.echo(printable(line), err=True)
    raise typer.Exit(1)


def _way_out(error: TorchdError) -> str:
    from torchd_clients import errors

    hints: dict[type[TorchdError], str] = {
        errors.ModelNotFound: "`torchd models` shows what is registered.",
        errors.VersionNotFound: "`torchd describe MODEL --version all` shows its versions.",
        errors.Overloaded: "`torchd scale MODEL N` adds workers.",
        errors.NotEnoughDevices: "`torchd devices` shows who holds which.",
        errors.NoWorker: "`torchd scale MODEL 1` starts one.",
        errors.ModelFailed: "`torchd describe MODEL` shows the traceback.",
        errors.LoadFailed: "The daemon's log has the traceback; `torchd run ARCHIVE -T FILE` shows it here.",
        errors.WorkerDied: "`torchd describe MODEL` shows how it ended.",
        errors.Unauthenticated: "--token or TORCHD_TOKEN names the token; your own daemon's is found by itself.",
        errors.DeadlineExceeded: "`torchd models` shows how many requests wait.",
    }
    said = [f"({error.reason} from {error.address or 'the model'})"] if error.reason else []
    said += [hint for kind, hint in hints.items() if isinstance(error, kind)]
    if error.reason in ("HANDLER_ERROR", "HANDLER_EXIT"):
        said.append("The daemon's log has the traceback.")
    if error.retry_delay is not None:
        said.append(f"Try again in {error.retry_delay:g} s.")
    return " ".join(said)


@contextmanager
def _progress(text: str) -> Iterator[None]:
    from rich.console import Console

    with Console(stderr=True, markup=False).status(text):
        yield


def _parts(files: Sequence[str]) -> bytes | dict[str, bytes]:
    named = [_name_and_path(file) for file in files]
    if len(named) == 1 and not named[0][0]:
        return _content(named[0][1])
    names = [name for name, _ in named]
    if not all(names) or len(set(names)) < len(names):
        _fail(f"{len(files)} files are {len(files)} parts: give each a name of its own, -T NAME=FILE")
    return {name: _content(path) for name, path in named}


def _name_and_path(file: str) -> tuple[str, str]:
    name, equals, path = file.partition("=")
    return (name, path) if equals and "/" not in name else ("", file)


def _content(path: str) -> bytes:
    return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()


def _describe_all(client: Client) -> list[ModelDescription]:
    from torchd_clients.errors import ModelNotFound

    described = []
    for summary in client.list():
        try:
            described += client.describe(summary.model_name, "all")
        except ModelNotFound:  # unregistered since the list was made
            continue
    return described


def _workers_of(change: ModelChange) -> str:
    state = f"{change.ready_workers} of {change.wanted_workers} workers ready"
    return f"{change.model_name} {change.model_version}: {state}" + ("" if change.done else ", still going on")


def _print_bytes(answers: Iterable[bytes]) -> None:
    last = b""
    for last in answers:
        sys.stdout.buffer.write(last)
        sys.stdout.buffer.flush()
    if sys.stdout.isatty() and not last.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")


def _print_json_lines(answers: Iterable[bytes]) -> None:
    for answer in answers:
        try:
            line = {"prediction": answer.decode()}
        except UnicodeDecodeError:
            line = {"prediction_base64": base64.b64encode(answer).decode()}
        typer.echo(json.dumps(line))
        sys.stdout.flush()


def _print_json(messages: Iterable[Message]) -> None:
    from google.protobuf.json_format import MessageToDict

    documents = [
        MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        for message in messages
    ]
    typer.echo(json.dumps(documents, indent=2))
