"""The flags of TorchServe's own command, `torchserve`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchd_server.torchserve.config_properties import Given


class Refused(Exception):
    """The command cannot do what was asked; the message is TorchServe's own where it has one."""


@dataclass(frozen=True, slots=True)
class Flags:
    """What was asked for; None or empty where a flag was not given."""

    version: bool = False
    stop: bool = False
    foreground: bool = False
    no_config_snapshots: bool = False
    ts_config: Path | None = None
    model_store: Path | None = None
    workflow_store: Path | None = None
    models: tuple[str, ...] = ()
    log_config: Path | None = None
    cpp_log_config: Path | None = None
    plugins_path: str | None = None
    disable_token_auth: bool = False
    enable_model_api: bool = False
    # A descriptor to say on that the server listens: given by the command that started this one in the background.
    ready_fd: int | None = None


def parse(argv: Sequence[str]) -> Flags:
    """Reads the flags; ends the process as argparse does for --help and for one that is wrong."""
    return flags_of(parser().parse_args(argv))


def flags_of(found: argparse.Namespace) -> Flags:
    """What the parser found."""
    given = dict(vars(found))
    del given["start"]  # what happens anyway
    return Flags(**{**given, "models": tuple(given["models"])})


def parser(prog: str = "torchserve") -> argparse.ArgumentParser:
    """The parser, also of `torchd config show` and `torchd check`."""
    parser = argparse.ArgumentParser(prog=prog, description="torchd with TorchServe's flags, defaults and answers.")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("-v", "--version", action="store_true", help="print the version and leave")
    action.add_argument("--start", action="store_true", help="start the server (the default)")
    action.add_argument("--stop", action="store_true", help="stop the server")
    parser.add_argument(
        "--foreground", action="store_true", help="stay in the foreground; with --stop, wait for the end"
    )
    parser.add_argument("--ts-config", type=Path, metavar="FILE", help="a config.properties file")
    parser.add_argument("--model-store", type=Path, metavar="DIR", help="folder with the model archives")
    parser.add_argument("--workflow-store", type=Path, metavar="DIR", help="folder with the workflow archives")
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="[NAME=]FILE", help="archives or URLs to load at start, or all"
    )
    parser.add_argument("--log-config", type=Path, metavar="FILE", help="a log4j2 XML file; its levels are read")
    parser.add_argument(
        "--no-config-snapshots",
        "--ncs",
        dest="no_config_snapshots",
        action="store_true",
        help="neither start from a snapshot of the registered models nor keep any",
    )
    parser.add_argument("--disable-token-auth", "--dt", action="store_true", help="ask for no tokens")
    parser.add_argument(
        "--enable-model-api",
        "--model-api-enabled",
        dest="enable_model_api",
        action="store_true",
        help="let clients register and unregister models",
    )
    parser.add_argument("--cpp-log-config", type=Path, metavar="FILE", help="no effect: there is no C++ backend")
    parser.add_argument("--plugins-path", "--ppath", metavar="DIR", help="no effect: Java plugins cannot be loaded")
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    return parser


def check_paths(flags: Flags, environment: Mapping[str, str]) -> None:
    """Raises Refused for a path that is not there, in TorchServe's words."""
    for path, what in (
        (flags.log_config and flags.log_config.absolute(), "--log-config"),
        (chosen_config(flags, environment), "--ts-config"),
        (flags.cpp_log_config and flags.cpp_log_config.absolute(), "--cpp-log-config"),
    ):
        if path is not None and not path.is_file():
            raise Refused(f"{what} file not found: {path}")
    for path, what in ((flags.model_store, "--model-store"), (flags.workflow_store, "--workflow-store")):
        if path is not None and not path.is_dir():
            raise Refused(f"{what} directory not found: {path}")
    temp = environment.get("TEMP")
    if temp and not os.path.isdir(temp):
        raise Refused(f"Invalid temp directory: {temp}, please check TEMP environment variable.")


def chosen_config(flags: Flags, environment: Mapping[str, str]) -> Path | None:
    """The file that somebody named: TS_CONFIG_FILE stands above --ts-config."""
    named = environment.get("TS_CONFIG_FILE")
    return Path(named) if named else flags.ts_config


def as_properties(flags: Flags) -> list[Given]:
    """The flags as the properties they stand for; the two switches can only switch on."""
    found = []
    if flags.model_store is not None:
        found.append(Given("model_store", str(flags.model_store), "--model-store"))
    if flags.workflow_store is not None:
        found.append(Given("workflow_store", str(flags.workflow_store), "--workflow-store"))
    if flags.models:
        found.append(Given("load_models", ",".join(flags.models), "--models"))
    if flags.disable_token_auth:
        found.append(Given("disable_token_authorization", "true", "--disable-token-auth"))
    if flags.enable_model_api:
        found.append(Given("enable_model_api", "true", "--enable-model-api"))
    return found


def without_meaning(flags: Flags) -> list[str]:
    """One line for each flag that was given and does nothing here."""
    found = []
    if flags.cpp_log_config is not None:
        found.append("--cpp-log-config has no effect: there is no C++ backend")
    if flags.plugins_path is not None:
        found.append("--plugins-path has no effect: Java plugins cannot be loaded; Python entry points can (docs)")
    return found
