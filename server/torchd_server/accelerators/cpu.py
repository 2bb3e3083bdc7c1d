"""The processor: how many cores this process may use, and how its workers share them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Cores this process may use: its affinity, cut down to the quota of its control group (v2, then v1)."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota(cgroup))))


def _quota(cgroup: Path) -> float:
    """Cores the control groups grant, this process's own and those above it.

    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files; version 1 is asked where 2 says nothing.
    """
    own = cgroup / own_group()
    return min(_quota_v1(cgroup), *(_quota_v2(group) for group in (own, *own.parents) if group.is_relative_to(cgroup)))


def own_group() -> str:
    """This process's control group (v2), as a path below the root of all."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")


def _quota_v2(group: Path) -> float:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def _quota_v1(cgroup: Path) -> float:
    try:
        quota_us = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((cgroup / "cpu/cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return math.inf
    return quota_us / period_us if quota_us > 0 else math.inf


class ThreadBudget:
    """Divides the cores among the workers of all models, and tells each living worker when its share changes."""

    def __init__(self, cores: int, fixed: int = 0) -> None:
        self._cores = cores
        self._fixed = fixed
        self._members: dict[object, Callable[[int], None]] = {}

    @property
    def share(self) -> int:
        """Compute threads of one worker now."""
        return self._share(len(self._members))

    def join(self, member: object, tell: Callable[[int], None]) -> int:
        """`member` is a worker from now on; returns its share. `tell` is called when that changes."""
        before = self.share
        self._members[member] = tell
        self._tell_change(before)
        return self.share

    def leave(self, member: object) -> None:
        """`member` is no worker any more."""
        before = self.share
        if self._members.pop(member, None) is not None:
            self._tell_change(before)

    def _share(self, members: int) -> int:
        return self._fixed or max(1, self._cores // max(1, members))

    def _tell_change(self, before: int) -> None:
        if self.share != before:
            for tell in list(self._members.values()):
                tell(self.share)
