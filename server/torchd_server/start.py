"""From argv and the environment, which only this module reads, to a running daemon.

torchd serve   the secure posture
torchserve     TorchServe's flags, defaults and answers
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from torchd_server import logs
from torchd_server.run_directory import RunDirectoryTaken, default_run_directory
from torchd_server.settings import (
    API_NAMES,
    POSTURES,
    Address,
    LogFiles,
    ServerSettings,
    SettingInvalid,
    TorchServeMetrics,
)
from torchd_server.torchserve import config_properties, log_files

VERSION = "0.1.0"
TORCHSERVE_VERSION = "0.12.0"  # whose behaviour this command has
# sysexits.h and errno: what went wrong, for scripts.
EX_USAGE, EX_CONFIG, EX_IN_USE = 64, 78, 98
READY_LINE = "Model server started."


def torchserve(argv: Sequence[str]) -> NoReturn:
    """`torchserve`: TorchServe's own flags, as far as they are there yet."""
    flags = _torchserve_parser().parse_args(argv)
    if flags.version:
        print(f"TorchServe Version is {TORCHSERVE_VERSION} (torchd {VERSION})")
        sys.exit(0)
    if flags.stop:
        _refuse("torchserve --stop comes with a later release; stop the foreground server with Ctrl-C or SIGTERM")
    if not flags.foreground:
        _note("the server stays in the foreground; the background start comes with a later release")
    settings = _checked(lambda: _torchserve_settings(flags, os.environ))
    for weakness in _weaknesses(flags, settings):
        _note(f"warning: {weakness}")
    _open_logs(settings)
    _run(settings)


def _open_logs(settings: ServerSettings) -> None:
    """TorchServe's console and files; a folder that cannot be written costs the files, not the server."""
    try:
        handlers = log_files.handlers(settings.log_files)
    except log_files.LogFolderUnusable as error:
        _note(f"warning: {error}; there will be no log files")
        handlers = log_files.handlers(LogFiles())
    logs.start(handlers, "info")


def serve(argv: Sequence[str]) -> NoReturn:
    """`torchd serve`: the daemon until it is told to stop."""
    flags = _serve_parser().parse_args(argv)
    settings = _checked(lambda: _serve_settings(flags, os.environ))
    logs.configure(flags.log_format, flags.log_level)
    _run(settings)


def _run(settings: ServerSettings) -> NoReturn:
    """Runs the daemon to its end and turns what stopped it into an exit status."""
    from torchd_server import daemon  # gRPC takes a while to import: --help and mistakes do not wait for it

    _reset_signals()
    try:
        _runner()(daemon.serve(settings, _say_ready))
    except (RunDirectoryTaken, daemon.AddressInUse) as error:
        _refuse(str(error), EX_IN_USE)
    sys.exit(0)


def _say_ready() -> None:
    """In one write: the log's thread may be at the same descriptor."""
    sys.stdout.write(f"{READY_LINE}\n")
    sys.stdout.flush()


def _runner() -> Callable[..., object]:
    try:
        import uvloop
    except ImportError:  # not on this platform: the standard loop serves, more slowly
        return asyncio.run
    return uvloop.run


def _reset_signals() -> None:
    """A daemon started from a script's background (`&`) inherits SIGINT ignored; we stop on it all the same."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _serve_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchd serve",
        description="Serves models over gRPC and REST until SIGTERM or Ctrl-C; accepted requests finish first.",
        epilog="next: torchd register MODEL.mar, torchd predict MODEL -T FILE, torchd models",
    )
    listeners = ServerSettings().listeners
    parser.add_argument("--model-store", type=Path, metavar="DIR", help="folder with the model archives")
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="[NAME=]FILE", help="archives to load at start, or all"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a config.properties file")
    parser.add_argument("--host", help=f"address to listen on (loopback only for now; {listeners.inference.host})")
    for name in API_NAMES:
        flag = f"--{name.replace('_', '-')}-port"
        port = getattr(listeners, name).port
        parser.add_argument(flag, type=int, metavar="PORT", help=f"{port}; 0 takes any free port")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="lock and addresses of this daemon; 0700")
    parser.add_argument(
        "--worker-threads", type=int, metavar="N", help="compute threads of each worker (its share of the cores)"
    )
    parser.add_argument(
        "--drain-grace",
        type=float,
        metavar="SECONDS",
        help=f"time to finish at the end ({ServerSettings().limits.drain_grace:g})",
    )
    parser.add_argument(
        "--enable-model-api", action=argparse.BooleanOptionalAction, help="let clients register models (yes)"
    )
    parser.add_argument("--log-format", choices=logs.FORMATS, default="text")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return parser


def _serve_settings(flags: argparse.Namespace, environment: Mapping[str, str]) -> ServerSettings:
    """The precedence of `torchd serve`: defaults < environment's thread number < config file < flags."""
    settings = _with_file(defaults("torchd", environment), flags.config)
    for name in API_NAMES:
        address: Address = getattr(settings.listeners, name)
        port = getattr(flags, f"{name}_port")
        flag = f"--{name.replace('_', '-')}-port" if flags.host is None else "--host"
        try:
            chosen = Address(flags.host or address.host, address.port if port is None else port)
            settings = replace(settings, listeners=settings.listeners.at(name, chosen))
        except SettingInvalid as error:
            raise SettingInvalid(flag, error.value, error.expected) from error
    if flags.enable_model_api is not None:
        settings = replace(settings, model_api=flags.enable_model_api)
    if flags.worker_threads is not None:
        settings = replace(settings, worker_threads=flags.worker_threads)
    if flags.drain_grace is not None:
        settings = replace(settings, limits=replace(settings.limits, drain_grace=flags.drain_grace))
    return _with_store(settings, flags.model_store, flags.models, flags.run_dir, environment)


def _torchserve_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchserve", description="torchd with TorchServe's flags, defaults and answers."
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("-v", "--version", action="store_true", help="print the version and leave")
    action.add_argument("--start", action="store_true", help="start the server")
    action.add_argument("--stop", action="store_true", help="stop the server")
    parser.add_argument("--foreground", action="store_true", help="stay in the foreground")
    parser.add_argument(
        "--ncs", "--no-config-snapshots", action="store_true", help="keep no snapshots (none are kept yet)"
    )
    parser.add_argument("--ts-config", type=Path, metavar="FILE", help="a config.properties file")
    parser.add_argument("--model-store", type=Path, metavar="DIR", help="folder with the model archives")
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="[NAME=]FILE", help="archives to load at start, or all"
    )
    parser.add_argument("--disable-token-auth", "--dt", action="store_true", help="ask for no tokens")
    parser.add_argument("--enable-model-api", action="store_true", help="let clients register and unregister models")
    return parser


def _torchserve_settings(flags: argparse.Namespace, environment: Mapping[str, str]) -> ServerSettings:
    """The precedence of `torchserve`: TorchServe's defaults < config file (the environment's first) < flags."""
    named = environment.get("TS_CONFIG_FILE")
    config = Path(named) if named else flags.ts_config
    settings = replace(defaults("torchserve", environment), log_files=_log_folders(environment))
    settings = _with_file(settings, config)
    if flags.enable_model_api:
        settings = replace(settings, model_api=True)
    if flags.model_store is None and settings.model_store is None:
        _refuse("Missing mandatory parameter --model-store DIR (or model_store in config.properties)", 1)
    return _with_store(settings, flags.model_store, flags.models, None, environment)


def _log_folders(environment: Mapping[str, str]) -> LogFiles:
    """TorchServe's: LOG_LOCATION (./logs), and METRICS_LOCATION, which is the same where it is not given."""
    logs_in = Path(environment.get("LOG_LOCATION") or "logs").absolute()
    metrics_in = environment.get("METRICS_LOCATION")
    return LogFiles(logs_in, Path(metrics_in).absolute() if metrics_in else logs_in)


def defaults(name: str, environment: Mapping[str, str]) -> ServerSettings:
    """The settings of a posture before any file or flag."""
    posture = POSTURES[name]
    return ServerSettings(
        posture=posture,
        limits=posture.limits,
        model_api=posture.model_api,
        allowed_urls=posture.allowed_urls,
        torchserve_metrics=TorchServeMetrics(mode=posture.metrics_mode),
        environment=dict(environment),
        worker_threads=_threads_of(environment),
    )


def _weaknesses(flags: argparse.Namespace, settings: ServerSettings) -> list[str]:
    """What TorchServe's defaults leave open, one line each."""
    found = []
    if not flags.disable_token_auth:
        found.append("there are no tokens yet; everybody on this machine may call, so only loopback is served")
    if settings.posture.worker_environment is None:
        found.append("workers see this process's whole environment; torchd serve passes an allow-list on")
    return found


def _with_file(settings: ServerSettings, path: Path | None) -> ServerSettings:
    if path is None:
        return settings
    if not path.is_file():
        _refuse(f"configuration file {path} not found", 1)
    applied = config_properties.apply(settings, path)
    for warning in applied.warnings:
        _note(warning)
    return applied.settings


def _with_store(
    settings: ServerSettings,
    store: Path | None,
    models: Sequence[str],
    run_dir: Path | None,
    environment: Mapping[str, str],
) -> ServerSettings:
    store = store or settings.model_store
    if store is not None and not store.is_dir():
        _refuse(f"model store {store} is not a folder", 1)
    names = tuple(name.strip() for entry in models for name in entry.split(",") if name.strip())
    run_dir = run_dir or default_run_directory(environment, settings.listeners.management.port)
    return replace(
        settings,
        model_store=store.resolve() if store is not None else None,
        models=names or settings.models,
        run_dir=run_dir.absolute(),
    )


def _threads_of(environment: Mapping[str, str]) -> int:
    """OMP_NUM_THREADS of the daemon holds for each worker, as it did in TorchServe's containers."""
    value = environment.get("OMP_NUM_THREADS", "")
    return int(value) if value.isascii() and value.isdigit() and 0 < int(value) <= 1024 else 0


def _checked(make: Callable[[], ServerSettings]) -> ServerSettings:
    try:
        return make()
    except SettingInvalid as error:
        _refuse(str(error), EX_CONFIG)


def _note(text: str) -> None:
    if text:
        print(f"torchd: {text}", file=sys.stderr)


def _refuse(text: str, status: int = EX_USAGE) -> NoReturn:
    print(f"torchd: {text}", file=sys.stderr)
    sys.exit(status)
