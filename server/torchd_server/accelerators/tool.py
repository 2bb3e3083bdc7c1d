"""A driver's tool, asked once: it may be missing, hang or print nonsense, and none of it may hold the daemon up."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import IO

# A driver that has to load first takes seconds.
TOOL_SECONDS = 10.0
MOST_BYTES = 4 * 1024 * 1024


class ToolFailed(Exception):
    """The tool gave no answer; the message says why, in words that follow its name."""


def find(name: str, environment: Mapping[str, str], elsewhere: str = "") -> str | None:
    """Where the tool is: on this PATH, or at the path where its package puts it."""
    found = shutil.which(name, path=environment.get("PATH", os.defpath))
    return found or (elsewhere if elsewhere and os.access(elsewhere, os.X_OK) else None)


def ask(command: Sequence[str], environment: Mapping[str, str], seconds: float = TOOL_SECONDS) -> str:
    """What the command prints; raises ToolFailed after `seconds` at the latest, whatever it has left behind."""
    try:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise ToolFailed(f"cannot be run: {error.strerror}") from error
    try:
        told = _read(process.stdout, time.monotonic() + seconds)
        status = process.wait(timeout=1.0)
    except (ToolFailed, subprocess.TimeoutExpired) as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it where no signal reaches it
            process.wait(timeout=1.0)
        raise error if isinstance(error, ToolFailed) else ToolFailed("does not end") from error
    finally:
        if process.stdout is not None:
            process.stdout.close()
    if status:
        raise ToolFailed(f"left with status {status}")
    return told.decode("utf-8", "replace")


def _read(output: IO[bytes] | None, end: float) -> bytes:
    told = b""
    while output is not None:
        # Not select: a daemon may have more descriptors than it can count.
        poll = select.poll()
        poll.register(output, select.POLLIN)
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            raise ToolFailed("does not answer")
        chunk = os.read(output.fileno(), 65536)
        if not chunk:
            return told
        told += chunk
        if len(told) > MOST_BYTES:
            raise ToolFailed(f"prints more than {MOST_BYTES} bytes")
    return told
