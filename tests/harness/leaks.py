"""What a process holds, before and after: descriptors, threads, children, files. Nothing may be left (P21)."""

from __future__ import annotations

import gc
import os
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.eventually import eventually

# grpc keeps a few of these per process, for good, and makes them when it likes.
_OF_GRPC_CORE = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]", "anon_inode:[timerfd]")


@dataclass(frozen=True, slots=True)
class Holdings:
    """What this process holds at one moment."""

    descriptors: frozenset[str]
    threads: frozenset[threading.Thread]
    children: frozenset[int]

    @classmethod
    def now(cls) -> Holdings:
        """Looks at this process."""
        gc.collect()
        return cls(
            frozenset(_descriptors()),
            # pytest-timeout has one for the running test.
            frozenset(thread for thread in threading.enumerate() if not thread.name.startswith("pytest_timeout")),
            frozenset(child.pid for child in psutil.Process().children(recursive=True)),
        )

    def more_than(self, before: Holdings) -> list[str]:
        """One line for each thing that was not there before."""
        return [
            *(f"descriptor {name}" for name in sorted(self.descriptors - before.descriptors)),
            *(f"thread {thread.name}" for thread in self.threads - before.threads if thread.is_alive()),
            *(f"child {_describe(pid)}" for pid in sorted(self.children - before.children)),
        ]


def check_nothing_left(before: Holdings, *, within: float = 10.0) -> None:
    """Fails with a list unless this process comes back to what it held `before`.

    Some of it ends a moment after its owner has let it go (grpc closes sockets on a thread of its own): that is
    waited for.
    """
    for child in Holdings.now().children - before.children:
        _wait_gone(child, within)
    left: list[str] = []

    def is_clean() -> bool:
        left[:] = Holdings.now().more_than(before)
        return not left

    try:
        eventually(is_clean, within=within)
    except AssertionError:
        raise AssertionError("left behind:\n" + "\n".join(left)) from None


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every process that works in a folder, or names it in its command line or its environment."""
    return [process for process in psutil.process_iter() if _belongs(process, folder)]


def check_no_process_left(folder: Path, *, within: float = 10.0) -> None:
    """Fails unless every process of `folder` ends in time; kills what is left, so that one test fails and not all."""
    left = processes_of(folder)
    _, alive = psutil.wait_procs(left, timeout=within)
    if alive:
        told = "\n".join(_describe(process.pid) for process in alive)
        for process in alive:
            process.kill()
        raise AssertionError(f"processes left behind:\n{told}")


def files_in(folder: Path) -> Counter[str]:
    """The kinds of files under a folder that are more than empty folders, by relative path."""
    return Counter(
        str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if not path.is_dir() or path.is_symlink()
    )


def _descriptors() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
            mode = os.fstat(int(name)).st_mode
        except OSError:
            continue  # the one this listing used itself
        if target in _OF_GRPC_CORE or (stat.S_ISCHR(mode) and target == "/dev/null"):
            continue
        yield f"{name} -> {target}"


def _belongs(process: psutil.Process, folder: Path) -> bool:
    if process.pid == os.getpid():
        return False
    mark = str(folder)
    try:
        # The command line first: of a daemon whoever is not root may read nothing else.
        return (
            any(mark in word for word in process.cmdline())
            or process.cwd().startswith(mark)
            or any(mark in value for value in process.environ().values())
        )
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return False


def _wait_gone(pid: int, within: float) -> None:
    try:
        psutil.Process(pid).wait(within)
    except (psutil.NoSuchProcess, psutil.TimeoutExpired):
        return  # still there: the caller names it


def _describe(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return f"{pid} {process.status()} {' '.join(process.cmdline())[:200]}"
    except psutil.NoSuchProcess:
        return f"{pid} (gone)"
