"""The run directory: it belongs to one living daemon, which holds its lock and writes there where it listens."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path


class RunDirectoryTaken(RuntimeError):
    """Another daemon lives there, or the directory is not ours."""


def default_run_directory(environment: Mapping[str, str], management_port: int) -> Path:
    """`$XDG_RUNTIME_DIR/torchd/<port>`, else `torchd-<uid>/<port>` in the temporary directory."""
    runtime = environment.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime):
        return Path(runtime) / "torchd" / str(management_port)
    return Path(tempfile.gettempdir()) / f"torchd-{os.getuid()}" / str(management_port)


class RunDirectory:
    """Taken when built; the lock goes with the process, so a killed daemon leaves nothing to be cleaned by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Every folder on the way that is ours to make is ours alone; one that lay there must be ours too.
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
        self._check_owner()
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise RunDirectoryTaken(
                f"another torchd (pid {self._holder()}) uses {path}; stop it, or start this one with other ports "
                "or another --run-dir"
            ) from error
        # What a killed daemon left: nobody uses it, we hold the lock.
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(mode=0o700)

    @property
    def scratch(self) -> Path:
        """Where archives are unpacked."""
        return self.path / "models"

    def announce(self, addresses: Mapping[str, str]) -> None:
        """Writes daemon.json: this process, and where it listens."""
        staging = self.path / "daemon.json.new"
        staging.write_text(json.dumps({"pid": os.getpid(), **addresses}, indent=2) + "\n")
        staging.replace(self.path / "daemon.json")

    def leave(self) -> None:
        """Removes what we wrote and gives the directory up."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        (self.path / "daemon.json").unlink(missing_ok=True)
        # The lock file stays: to remove it would let two daemons hold locks on two files of one name.
        os.close(self._lock)

    def _check_owner(self) -> None:
        status = os.stat(self.path, follow_symlinks=False)
        if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
            raise RunDirectoryTaken(f"{self.path} is not a folder of user {os.getuid()}; choose another --run-dir")
        # Who owns the folder above could put another one in its place.
        above = os.stat(self.path.parent)
        is_shared = above.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not above.st_mode & stat.S_ISVTX
        if above.st_uid not in (0, os.getuid()) or is_shared:
            raise RunDirectoryTaken(f"others may change {self.path.parent}; choose another --run-dir")
        os.chmod(self.path, 0o700)

    def _holder(self) -> str:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return str(json.loads((self.path / "daemon.json").read_text())["pid"])
        return "unknown"
