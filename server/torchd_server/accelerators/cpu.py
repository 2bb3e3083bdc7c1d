"""The processor: which cores this process may use, where they are, and how its workers share them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from torchd_server.accelerators.base import Device, Found

CGROUP = Path("/sys/fs/cgroup")
NODES = Path("/sys/devices/system/node")


class Cpu:
    """Cores, which a model's workers have to themselves where it asks for that (coresPerWorker)."""

    name: ClassVar[str] = "cpu"
    device_type: ClassVar[str] = "cpu"
    unit: ClassVar[str] = "CPU core"
    units: ClassVar[str] = "CPU cores"
    exclusive: ClassVar[bool] = True

    def __init__(self, cgroup: Path = CGROUP, nodes: Path = NODES) -> None:
        self._cgroup = cgroup
        self._nodes = nodes

    def discover(self, environment: Mapping[str, str]) -> Found:
        """As many as this process may use, node by node: its affinity, which a cpuset narrows, and its quota."""
        node_of = numa_nodes(self._nodes)
        order = sorted(allowed_cores(), key=lambda core: (node_of.get(core, 0), core))[: usable_cores(self._cgroup)]
        return Found(
            tuple(
                Device(self.name, index, str(core), "CPU core", numa_node=node_of.get(core))
                for index, core in enumerate(order)
            )
        )

    def environment(self, devices: Sequence[Device]) -> dict[str, str]:
        """None: the process is told its cores on its command line and sets its own affinity."""
        return {}


def allowed_cores() -> set[int]:
    """Numbers of the cores that this process may run on."""
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return set(range(os.cpu_count() or 1))


def numa_nodes(nodes: Path = NODES) -> dict[int, int]:
    """The NUMA node of each core, where the kernel tells."""
    found: dict[int, int] = {}
    for node in nodes.glob("node[0-9]*"):
        try:
            listed = (node / "cpulist").read_text().strip()
            found |= dict.fromkeys(_numbers(listed), int(node.name.removeprefix("node")))
        except (OSError, ValueError):
            continue
    return found


def _numbers(listed: str) -> list[int]:
    """`0-3,8` as the kernel writes lists."""
    found: list[int] = []
    for part in filter(None, listed.split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Cores this process may use: its affinity, cut down to the quota of its control group (v2, then v1)."""
    return max(1, math.ceil(min(len(allowed_cores()), _quota(cgroup))))


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
