"""The server to measure: one that runs, found or named, or one that is started for an archive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torchd_clients.bench.daemon import StartedDaemon, started_daemon
from torchd_clients.bench.errors import BenchError
from torchd_clients.bench.server import Server
from torchd_clients.bench.wire import address
from torchd_clients.run_directory import find_daemon

ARCHIVES = (".mar", ".tar.gz", ".tgz", ".zip")
_LOAD_WITHIN = 600.0


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model is registered in a daemon of our own; 0 leaves it to the archive and the daemon.

    `batch_delay_ms` can be 0: None leaves it. `config` are lines of the daemon's config.properties.
    """

    workers: int = 0
    batch_size: int = 0
    batch_delay_ms: int | None = None
    config: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Named:
    """What a person says of a running server; empty where it is left to what is found."""

    grpc_inference: str = ""
    inference: str = ""
    management: str = ""
    metrics: str = ""
    token: str = ""
    pid: int = 0


def is_archive(model: str) -> bool:
    """Whether MODEL is the file of an archive rather than the name of a model."""
    return model.endswith(ARCHIVES) or ("/" in model and Path(model).exists())


def running_server(named: Named, environ: Mapping[str, str]) -> Server:
    """The server at the addresses named, what is not named being as its daemon says, or TorchServe's. Raises
    BenchError."""
    given = [_bare(one) for one in (named.grpc_inference, named.inference, named.management, named.metrics) if one]
    found = find_daemon(environ, given)
    if found is None:
        return Server(
            grpc_inference=_bare(named.grpc_inference or "127.0.0.1:7070"),
            inference=_bare(named.inference or "127.0.0.1:8080"),
            management=_bare(named.management or "127.0.0.1:8081"),
            metrics=_bare(named.metrics or "127.0.0.1:8082"),
            pid=named.pid,
            inference_token=named.token,
            management_token=named.token,
        )
    if found.certificate:
        raise BenchError(f"the daemon at {found.grpc_inference} speaks TLS, and the load is asked in plain text")
    tokens = found.token
    return Server(
        grpc_inference=found.grpc_inference,
        inference=found.inference,
        management=found.management,
        metrics=found.metrics,
        pid=named.pid or found.pid,
        inference_token=named.token or (tokens and tokens("inference")) or "",
        management_token=named.token or (tokens and tokens("management")) or "",
    )


@contextmanager
def served_archive(archive: Path, setting: Setting) -> Iterator[tuple[Server, str]]:
    """A daemon with the archive registered in that setting, its workers ready; gives it and the model's name."""
    if not archive.exists():
        raise BenchError(f"there is no archive {archive}")
    with started_daemon(archive.resolve().parent, config=setting.config) as daemon:
        yield server_of(daemon), _register(daemon, archive.name, setting)


def server_of(daemon: StartedDaemon) -> Server:
    """A daemon of our own as what is measured."""
    return Server(
        grpc_inference=daemon.grpc_inference,
        inference=daemon.inference,
        management=daemon.management,
        metrics=daemon.metrics,
        pid=daemon.pid,
        inference_token=daemon.token("inference"),
        management_token=daemon.token("management"),
    )


def _register(daemon: StartedDaemon, file: str, setting: Setting) -> str:
    from torchd_clients.client import Client
    from torchd_clients.errors import TorchdError

    try:
        with Client(daemon.grpc_inference, daemon.grpc_management, token=daemon.token("management")) as client:
            change = client.register(
                file,
                initial_workers=setting.workers,
                batch_size=setting.batch_size or None,
                max_batch_delay=setting.batch_delay_ms,
                timeout=_LOAD_WITHIN,
            )
            if not change.wanted_workers:  # neither we nor the archive said how many
                client.scale(change.model_name, 1, timeout=_LOAD_WITHIN)
            return change.model_name
    except TorchdError as error:
        raise BenchError(f"{file} could not be served: {error.message}") from error


def _bare(given: str) -> str:
    try:
        host, port = address(given)
    except ValueError as error:
        raise BenchError(str(error)) from error
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
