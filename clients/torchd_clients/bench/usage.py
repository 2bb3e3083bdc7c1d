"""What a process tree costs: CPU time between two moments, and memory (PSS: what is shared counts once)."""

from __future__ import annotations

from pathlib import Path

import psutil

from torchd_clients.bench.measurement import Usage


class UsageMeter:
    """Reads the tree below `pid`, itself included, from its making on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = cpu_seconds(pid)

    def read(self) -> Usage:
        """What the tree used since the meter was made; its memory now. All 0 where it is gone."""
        tree = processes(self._pid)
        used = sum(_own_cpu_seconds(one) for one in tree) - self._before
        return Usage(max(0.0, used), sum(_pss_mib(one.pid) for one in tree), len(tree))


def processes(pid: int) -> list[psutil.Process]:
    """The process and everything below it; empty where it is gone."""
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """CPU time of the tree so far, with that of its children that have ended."""
    return sum(_own_cpu_seconds(one) for one in processes(pid))


def memory_mib(pid: int) -> float:
    """PSS of the tree."""
    return sum(_pss_mib(one.pid) for one in processes(pid))


def _own_cpu_seconds(one: psutil.Process) -> float:
    try:
        times = one.cpu_times()
    except psutil.Error:
        return 0.0
    # A child that ends hands its time to its parent when it is waited for: nothing is lost, nothing counts twice.
    return float(times.user + times.system + times.children_user + times.children_system)


def _pss_mib(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:  # it has ended, is a zombie, or hides its memory, as the daemon does from all but root
        pass
    try:
        return float(psutil.Process(pid).memory_info().rss) / 2**20
    except psutil.Error:
        return 0.0
