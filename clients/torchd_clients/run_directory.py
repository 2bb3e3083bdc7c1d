"""Where the daemons of this user say that they run: `daemon.json` in the run directory of each.

The server decides on the folders: $XDG_RUNTIME_DIR/torchd/<management port>, else torchd-<uid>/<management port> in the
temporary directory.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from torchd_clients.credentials import KeyFile, Tls


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running daemon, by its process id and the addresses of its services; where its tokens are, and by which
    certificate and name it is known, if it has them."""

    pid: int
    grpc_inference: str
    grpc_management: str
    key_file: str = ""
    certificate: str = ""
    tls_name: str = ""
    # HOST:PORT of its REST listeners.
    inference: str = ""
    management: str = ""
    metrics: str = ""

    @property
    def addresses(self) -> set[str]:
        """HOST:PORT of all its listeners."""
        return {self.grpc_inference, self.grpc_management, self.inference, self.management, self.metrics}

    @property
    def token(self) -> KeyFile | None:
        """Its tokens, if it has any."""
        return KeyFile(self.key_file) if self.key_file else None

    @property
    def tls(self) -> Tls | None:
        """By which certificate it is to be known, if it speaks TLS."""
        return Tls(Path(self.certificate).read_bytes(), self.tls_name) if self.certificate else None


def find_daemon(environ: Mapping[str, str], addresses: Collection[str] = ()) -> Daemon | None:
    """The one daemon this user runs that listens on all of `addresses`; None if there is none, or more than one to
    choose from."""
    found = {
        daemon.pid: daemon
        for folder in _folders(environ)
        for daemon in _daemons(folder)
        if daemon.addresses.issuperset(addresses)
    }
    return next(iter(found.values())) if len(found) == 1 else None


def _folders(environ: Mapping[str, str]) -> Iterator[Path]:
    if environ.get("XDG_RUNTIME_DIR"):
        yield Path(environ["XDG_RUNTIME_DIR"], "torchd")
    yield Path(tempfile.gettempdir(), f"torchd-{os.getuid()}")


def _daemons(folder: Path) -> Iterator[Daemon]:
    if not _is_private(folder):  # anybody can make this name in a temporary directory, and would be sent our requests
        return
    for path in sorted(folder.glob("*/daemon.json")):
        try:
            told = json.loads(path.read_text())
            daemon = Daemon(
                int(told["pid"]),
                str(told["grpc_inference"]),
                str(told["grpc_management"]),
                str(told.get("key_file", "")),
                str(told["certificate"]) if "grpc_tls" in told else "",
                str(told.get("tls_name", "")),
                *(urlsplit(str(told.get(name, ""))).netloc for name in ("inference", "management", "metrics")),
            )
            os.kill(daemon.pid, 0)  # a daemon that was killed leaves its file behind
        except (OSError, OverflowError, ValueError, LookupError, TypeError):
            continue
        yield daemon


def _is_private(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
