"""REST on a Unix socket: bound for this user alone, and never over something that is not a dead socket of ours."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path


def bind(path: Path) -> socket.socket:
    """A socket bound at `path`, which only this user may open; raises OSError if something is there that lives, or that
    is no socket of this user (D14)."""
    _remove_dead(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Narrowed before the name exists: there is no moment in which others could connect.
    before = os.umask(0o177)
    try:
        bound.bind(str(path))
    except OSError:
        bound.close()
        raise
    finally:
        os.umask(before)
    return bound


def remove(path: Path, bound: os.stat_result) -> None:
    """Removes the socket if the name is still the one that was bound."""
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == (bound.st_dev, bound.st_ino):
            path.unlink()


def _remove_dead(path: Path) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.getuid():
        raise FileExistsError(f"{path} exists and is no socket of user {os.getuid()}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FileExistsError(f"somebody listens on {path}")
