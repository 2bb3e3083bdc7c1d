"""`torchd config show` and `torchd check`: for the one who comes from TorchServe."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from torchd_server import start
from torchd_server.logs import escaped
from torchd_server.settings import ServerSettings, SettingInvalid
from torchd_server.torchserve import command_line
from torchd_server.torchserve.check_archive import check_archive, shim_folder
from torchd_server.torchserve.check_config import check_config
from torchd_server.torchserve.findings import Finding, Kind, is_clean

# Not for a screen: what they hold is secret, or somebody else's, or shown under other names.
_HIDDEN = frozenset({"environment", "properties", "posture"})
_SECRET = frozenset({"tls.keystore_password"})


def add_commands(app: typer.Typer) -> None:
    """Adds both."""
    config = typer.Typer(no_args_is_help=True, help="Look at the configuration.")
    theirs = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    config.command("show", help="Print every setting; takes torchserve's flags.", context_settings=theirs)(show)
    app.add_typer(config, name="config")
    app.command("check")(check)


def show(context: typer.Context) -> None:
    """Prints every setting of `torchserve` with the same flags, here, and where it comes from."""
    parser = command_line.parser("torchd config show")
    parser.add_argument("--origin", action="store_true", help="say where each value comes from")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = vars(parser.parse_args(context.args))
    wants_origin, wants_json = given.pop("origin"), given.pop("json")
    try:
        resolved = start.resolved_torchserve(command_line.flags_of(argparse.Namespace(**given)), os.environ)
    except (command_line.Refused, SettingInvalid) as error:
        print(f"torchd: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    for note in resolved.notes:
        print(f"torchd: {note}", file=sys.stderr)
    rows = list(rows_of(resolved.settings, resolved.origins))
    if wants_json:
        print(json.dumps({name: {"value": value, "origin": origin} for name, value, origin in rows}, indent=2))
        return
    _print_table(["setting", "value", "from"] if wants_origin else ["setting", "value"], rows)


def rows_of(settings: ServerSettings, origins: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(name, value, origin) of every setting."""
    plain = dict(_flat(ServerSettings()))
    posture = dict(_flat(start.defaults(settings.posture.name, {})))
    for name, value in _flat(settings):
        origin = _origin(name, origins)
        if not origin:
            by_posture = f"posture {settings.posture.name}"
            origin = "default" if value == plain[name] else by_posture if value == posture[name] else "derived"
        yield name, "***" if name in _SECRET and value != plain[name] else value, origin


def _origin(name: str, origins: Mapping[str, str]) -> str:
    """Where it, or a part of it (a gRPC address has a host and a port), comes from."""
    return ", ".join(dict.fromkeys(said for path, said in origins.items() if f"{path}.".startswith(f"{name}.")))


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for field in dataclasses.fields(value):
        inner, name = getattr(value, field.name), f"{prefix}{field.name}"
        if name in _HIDDEN:
            continue
        if dataclasses.is_dataclass(inner) and not prefix.startswith("listeners"):
            yield from _flat(inner, f"{name}.")
        else:
            yield name, _shown(inner)


def _shown(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case tuple():
            return ", ".join(map(str, value))
        case Mapping():
            return json.dumps(dict(value)) if value else ""
        case _:
            return ("https://" if getattr(value, "tls", False) else "") + str(value)


def check(
    config: Annotated[Path, typer.Argument(help="A config.properties file.")],
    model_store: Annotated[Path | None, typer.Argument(help="The model store; else the file's.")] = None,
    models: Annotated[list[str] | None, typer.Option("--models", help="Only these archives; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what will behave differently here than under TorchServe: keys, archives, imports of handlers."""
    if not config.is_file():
        print(f"torchd: {config} does not exist", file=sys.stderr)
        raise typer.Exit(2)
    settings, findings = check_config(config, start.defaults("torchserve", os.environ), os.environ)
    store = model_store or settings.model_store
    if store is None:
        findings.append(Finding(Kind.NOTE, str(config), "no model store is named: no archive was looked at"))
    elif not store.is_dir():
        findings.append(Finding(Kind.REFUSED, str(store), "the model store is not a folder"))
    else:
        findings += _check_archives(store, models, settings.install_dependencies)
        findings += _check_loaded(config, settings, store) if models is None else ()
    if as_json:
        print(json.dumps([{**dataclasses.asdict(found), "kind": found.kind.value} for found in findings], indent=2))
    elif findings:
        _print_table(["", "where", "what"], [(found.kind.value, found.where, found.what) for found in findings])
    if not as_json:
        print(
            "Nothing will behave differently." if is_clean(findings) else "docs/migrating.md says what to do instead."
        )
    raise typer.Exit(0 if is_clean(findings) else 1)


def _check_archives(store: Path, models: list[str] | None, installs_dependencies: bool) -> Iterator[Finding]:
    from torchd_server.store import ModelStore

    shim = shim_folder()
    every = models is None or any(name.lower() == "all" for name in models)
    names = ModelStore(store, store).names() if every else [name.rpartition("=")[2] for name in models or ()]
    for name in names:
        if "://" in name:
            yield Finding(Kind.NOTE, name, "is not fetched: put the archive into the store to have it looked at")
        elif not (store / name).exists():
            yield Finding(Kind.REFUSED, name, f"is not in {store}")
        else:
            yield from check_archive(store / name, installs_dependencies, shim)


def _check_loaded(config: Path, settings: ServerSettings, store: Path) -> Iterator[Finding]:
    """What load_models names and the store does not have: archives in other places are looked at by nobody else."""
    for entry in settings.models:
        name = entry.rpartition("=")[2]
        if "://" in name:
            yield Finding(Kind.NOTE, name, "is not fetched: put the archive into the store to have it looked at")
        elif name.lower() == "all" or (Path(name).name == name and (store / name).exists()):
            continue
        elif Path(name).name != name:
            yield Finding(Kind.REFUSED, str(config), f"load_models={entry} is a path; only names of {store} are loaded")
        else:
            yield Finding(Kind.REFUSED, str(config), f"load_models={entry}: {store} has none")


def _print_table(columns: list[str], rows: Any) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(escaped(cell)) for cell in row[: len(columns)]))
    console = Console()
    # Cut lines help nobody who pipes them on.
    Console(width=console.width if console.is_terminal else 400).print(table)
