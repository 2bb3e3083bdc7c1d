"""From argv and the environment, which only this module reads, to a running daemon.

torchd serve   the secure posture
torchserve     TorchServe's flags, defaults and answers
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TypeVar

from torchd_server import __version__, logs
from torchd_server.exposure import exposure
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
from torchd_server.torchserve import background, command_line, config_properties, log_files
from torchd_server.torchserve.command_line import Refused
from torchd_server.torchserve.pid_file import PidFile, PidFileUnsafe
from torchd_server.torchserve.sources import Resolved, from_file, resolve

VERSION = __version__
TORCHSERVE_VERSION = "0.12.0"  # whose behaviour this command has
# sysexits.h and errno: what went wrong, for scripts.
EX_USAGE, EX_CONFIG, EX_IN_USE = 64, 78, 98
READY_LINE = "Model server started."
_PR_SET_DUMPABLE = 4
T = TypeVar("T")


def torchserve(argv: Sequence[str]) -> NoReturn:
    """`torchserve`: starts, in the background unless told otherwise, or stops."""
    flags = command_line.parse(argv)
    if flags.version:
        print(f"TorchServe Version is {TORCHSERVE_VERSION} (torchd {VERSION})")
        sys.exit(0)
    pid_file = PidFile(Path(tempfile.gettempdir()))
    try:
        if flags.stop:
            background.stop(pid_file, flags.foreground, Path.cwd())
            sys.exit(0)
        if pid_file.running() is not None:
            raise Refused("TorchServe is already running, please use torchserve --stop to stop TorchServe.")
        if not flags.foreground:
            command_line.check_paths(flags, os.environ)  # said before a process is made
            sys.exit(background.start(argv))
        resolved = _checked(lambda: resolved_torchserve(flags, os.environ))
    except (Refused, PidFileUnsafe) as error:
        print(error)
        sys.exit(1)
    for note in resolved.notes:
        _note(note)
    _say_exposure(resolved.settings)
    _open_logs(resolved.settings)
    for name, level in resolved.log_config.levels.items():
        logging.getLogger(name).setLevel(level.upper())
    _run_with_pid_file(resolved.settings, pid_file, flags.ready_fd)


def resolved_torchserve(flags: command_line.Flags, environment: Mapping[str, str]) -> Resolved:
    """The settings of `torchserve` with these flags, here."""
    return resolve(defaults("torchserve", environment), flags, environment, Path.cwd())


def _run_with_pid_file(settings: ServerSettings, pid_file: PidFile, ready_fd: int | None) -> NoReturn:
    try:
        pid_file.write()
    except (FileExistsError, PidFileUnsafe) as error:
        _refuse(f"another server was started here at the same moment: {error}", 1)
    except OSError as error:
        _refuse(f"{pid_file.path} cannot be written: {error.strerror}", 1)
    try:
        _run(settings, lambda: background.tell(ready_fd))
    finally:
        pid_file.remove(os.getpid())


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
    _say_exposure(settings)
    logs.configure(flags.log_format, flags.log_level)
    _run(settings)


def _run(settings: ServerSettings, ready: Callable[[], None] = lambda: None) -> NoReturn:
    """Runs the daemon to its end and turns what stopped it into an exit status."""

    def say_ready() -> None:
        # In one write: the log's thread may be at the same descriptor.
        sys.stdout.write(f"{READY_LINE}\n")
        sys.stdout.flush()
        ready()

    # We start other programs and never go on in a forked child: gRPC need not prepare for it, nor say that it cannot.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from torchd_server import daemon  # gRPC takes a while to import: --help and mistakes do not wait for it
    from torchd_server.surfaces.edge import AddressInUse

    _reset_signals()
    _hide_memory()
    try:
        _runner()(daemon.serve(settings, say_ready))
    except (RunDirectoryTaken, AddressInUse) as error:
        _refuse(str(error), EX_IN_USE)
    except SettingInvalid as error:  # a certificate or key that cannot be used, a plug-in that nobody knew before
        _refuse(str(error), EX_CONFIG)
    sys.exit(0)


def _runner() -> Callable[..., object]:
    try:
        import uvloop
    except ImportError:  # not on this platform: the standard loop serves, more slowly
        return asyncio.run
    return uvloop.run


def _reset_signals() -> None:
    """A daemon started from a script's background (`&`) inherits SIGINT ignored; we stop on it all the same."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _hide_memory() -> None:
    """The tokens and the TLS key are in this process's memory and the operator's environment: its workers, which run
    whatever an archive brings as the same user, may not read it, and no core dump shows it (E16)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)


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
    parser.add_argument("--host", help=f"address to listen on ({listeners.inference.host}); others need TLS and tokens")
    for name in API_NAMES:
        flag = f"--{name.replace('_', '-')}-port"
        port = getattr(listeners, name).port
        parser.add_argument(flag, type=int, metavar="PORT", help=f"{port}; 0 takes any free port")
    parser.add_argument(
        "--token-auth", action=argparse.BooleanOptionalAction, default=None, help="ask callers for tokens (yes)"
    )
    parser.add_argument("--tls-certificate", type=Path, metavar="PEM", help="serve TLS on every port, with this")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="its private key")
    parser.add_argument("--tls-client-ca", type=Path, metavar="PEM", help="ask clients for certificates of this CA")
    parser.add_argument(
        "--insecure-listen", action="store_true", help="let other machines in without TLS or without tokens"
    )
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
    parser.add_argument(
        "--plugins", nargs="+", default=[], metavar="NAME", help="installed plug-ins to load (docs/plugins.md)"
    )
    parser.add_argument("--log-format", choices=logs.FORMATS, default="text")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return parser


def _serve_settings(flags: argparse.Namespace, environment: Mapping[str, str]) -> ServerSettings:
    """The precedence of `torchd serve`: defaults < environment's thread number < config file < flags."""
    settings = _with_file(defaults("torchd", environment), flags.config, environment)
    for name in API_NAMES:
        address: Address = getattr(settings.listeners, name)
        port = getattr(flags, f"{name}_port")
        flag = f"--{name.replace('_', '-')}-port" if flags.host is None else "--host"
        try:
            chosen = replace(address, host=flags.host or address.host, port=address.port if port is None else port)
            settings = replace(settings, listeners=settings.listeners.at(name, chosen))
        except SettingInvalid as error:
            raise SettingInvalid(flag, error.value, error.expected) from error
    if flags.enable_model_api is not None:
        settings = replace(settings, model_api=flags.enable_model_api)
    settings = _guarded(settings, flags)
    if flags.plugins:
        settings = replace(settings, plugins=tuple(flags.plugins))
    if flags.worker_threads is not None:
        settings = replace(settings, worker_threads=flags.worker_threads)
    if flags.drain_grace is not None:
        settings = replace(settings, limits=replace(settings.limits, drain_grace=flags.drain_grace))
    return _with_store(settings, flags.model_store, flags.models, flags.run_dir, environment)


def _guarded(settings: ServerSettings, flags: argparse.Namespace) -> ServerSettings:
    """With the flags about tokens, TLS and who may reach the daemon."""
    if flags.token_auth is not None:
        settings = replace(settings, tokens=replace(settings.tokens, enabled=flags.token_auth))
    if flags.tls_client_ca is not None:
        settings = replace(settings, tls=replace(settings.tls, client_ca=flags.tls_client_ca))
    if flags.tls_certificate is not None or flags.tls_key is not None:
        tls = replace(settings.tls, certificate=flags.tls_certificate, private_key=flags.tls_key, keystore=None)
        listeners = settings.listeners
        for name in API_NAMES:
            listeners = listeners.at(name, replace(getattr(listeners, name), tls=True))
        settings = replace(settings, tls=tls, listeners=listeners, grpc_tls=True)
    return replace(settings, insecure_listen=settings.insecure_listen or flags.insecure_listen)


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


def _say_exposure(settings: ServerSettings) -> None:
    """One line for each weak value; leaves with 78 where the posture does not allow it."""
    try:
        weaknesses = exposure(settings)
    except SettingInvalid as error:
        _refuse(str(error), EX_CONFIG)
    for weakness in weaknesses:
        _note(f"warning: {weakness}")


def _with_file(settings: ServerSettings, path: Path | None, environment: Mapping[str, str]) -> ServerSettings:
    if path is None:
        return settings
    if not path.is_file():
        _refuse(f"configuration file {path} not found", 1)
    applied = config_properties.apply(settings, from_file(path, environment))
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


def _checked(make: Callable[[], T]) -> T:
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
