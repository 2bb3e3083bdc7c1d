"""`python -P -m torchd_workers --fd N --incarnation I --rank R --parent PID`: the process before it knows its model.

The daemon starts it with the socket as descriptor N, `--page 6` as the memory they have in common, and the model's
directory as the working directory. `-P` keeps that directory off sys.path until everything this runtime needs is
imported. `--cores 0,1` pins it to these CPU cores.
Where several processes are one worker, `--peers 7,8` are rank 0's sockets to ranks 1 and 2, `--leader 9` theirs to it,
and `--store 10` is where rank 0 lets all of them meet.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import io
import mmap
import os
import resource
import signal
import sys
from socket import socket
from typing import NoReturn

from torchd_workers.channel import Channel
from torchd_workers.worker import Worker

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Prepares the process and lives a worker's life; gives the exit status."""
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    _pin(_numbers(options.get("--cores", "")))
    _die_with(int(options["--parent"]))
    _work_behind_the_daemon()
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _tell_stacks()
    channel = Channel(_inherited(int(options["--fd"])), _common_page(int(options["--page"])))
    group = [_inherited(fd) for fd in _numbers(options.get("--peers") or options.get("--leader", ""))]
    if "--store" in options:
        _open_store(_inherited(int(options["--store"])))
    return Worker(channel, int(options["--incarnation"]), int(options["--rank"]), group).run()


def _open_store(listener: socket) -> None:
    # Imported where it is used: most workers are alone.
    from torchd_workers.rendezvous import MeetingPlace

    MeetingPlace(listener).open()


def _leave(status: int) -> NoReturn:
    """Does what libraries and handlers have asked for at the end, and leaves without taking the interpreter apart.

    With torch imported that would take seconds, and a thread of the collectives' backend, about to let go of a tensor,
    would wait for ever for the interpreter, or abort.
    """
    try:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(status)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


def _inherited(fd: int) -> socket:
    """What the daemon has left open here; what this process starts does not get it."""
    os.set_inheritable(fd, False)
    return socket(fileno=fd)


def _common_page(fd: int) -> memoryview:
    """The number of the last batch begun, as the daemon sees it too."""
    page = memoryview(mmap.mmap(fd, 8)).cast("Q")  # has a descriptor of its own
    os.close(fd)
    return page


def _pin(cores: list[int]) -> None:
    """Keeps the process on these cores, before a library counts how many there are; none given: on any."""
    if not cores:
        return
    had = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):  # none of them is there, which is seen below
        os.sched_setaffinity(0, cores)
    # The kernel takes those of a list that are allowed, and is silent about the rest.
    missing = sorted(set(cores) - os.sched_getaffinity(0))
    if missing:
        names = ", ".join(map(str, missing))
        allowed = ", ".join(map(str, sorted(had)))
        sys.exit(f"torchd worker {os.getpid()} leaves: it may not run on the cores {names}; it had {allowed}")


def _work_behind_the_daemon() -> None:
    """Waking this process does not interrupt the daemon: it finds more to do when its turn comes, in fewer switches.

    See SCHED_BATCH in sched(7). The share of the processor stays the same.
    """
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _die_with(parent: int) -> None:
    """Lets the kernel kill this process when the daemon dies, and what user code forks when this process does."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    forking: list[int] = []

    def ask(expected: int) -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != expected:  # it died before the kernel was asked
            os._exit(0)

    # The kernel does not pass the wish on to a child.
    os.register_at_fork(
        before=lambda: forking.append(os.getpid()),
        after_in_parent=forking.clear,
        after_in_child=lambda: ask(forking[-1]),
    )
    ask(parent)


def _tell_stacks() -> None:
    """Stacks go to stderr: at SIGUSR2, by which the daemon asks a hung worker, and when the process crashes."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)


if __name__ == "__main__":
    _leave(main())
