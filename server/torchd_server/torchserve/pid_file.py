"""`.model_server.pid` in the temporary directory: which TorchServe runs here, where its users' scripts look for it.

The place is shared and its name is known, so the file is made new, never followed through a link, and believed only if
it is ours and the process in it was there before the file.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import psutil

NAME = ".model_server.pid"
# Command lines that are a TorchServe's: this one's, and the Java one's, which someone may be about to leave.
_OURS = ("torchserve", "torchd_server", "org.pytorch.serve.ModelServer")
# A process is born before it writes its file; the clocks of /proc and of the file system differ by a tick.
_CLOCK_SLACK_SECONDS = 2.0


class PidFileUnsafe(RuntimeError):
    """Something that is not our file lies in its place."""


class PidFile:
    """The file in one temporary directory."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def running(self) -> psutil.Process | None:
        """The server that the file names, if it is one and lives; raises PidFileUnsafe for a file that is not ours."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PidFileUnsafe(f"{self.path} cannot be read ({error.strerror}); remove it") from error
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
                raise PidFileUnsafe(f"{self.path} is not a file of user {os.getuid()}; have it removed")
            words = file.read(64).split()
        if not words or not words[0].isdigit():
            return None
        return _server(int(words[0]), status.st_mtime)

    def write(self) -> None:
        """Names this process; an orphan's file gives way. Raises FileExistsError if a server that lives was faster."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self.path, flags, 0o600)
        except FileExistsError:
            if self.running() is not None:
                raise
            self.path.unlink(missing_ok=True)
            descriptor = os.open(self.path, flags, 0o600)
        with open(descriptor, "w") as file:
            file.write(str(os.getpid()))

    def remove(self, pid: int) -> None:
        """Removes the file if it names this process."""
        with contextlib.suppress(OSError, ValueError):
            if not self.path.is_symlink() and int(self.path.read_text()) == pid:
                self.path.unlink()


def _server(pid: int, written_at: float) -> psutil.Process | None:
    """The process, if it is a server and not one that got the number later."""
    try:
        process = psutil.Process(pid)
        if pid == os.getpid() or process.create_time() > written_at + _CLOCK_SLACK_SECONDS:
            return None
        is_server = any(word in argument for argument in process.cmdline() for word in _OURS)
        return process if is_server and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None
