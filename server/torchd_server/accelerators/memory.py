"""Main memory: how much of it a new process may still take."""

from __future__ import annotations

import math
from pathlib import Path

import psutil

from torchd_server.accelerators.cpu import CGROUP, own_group


def available_bytes(cgroup: Path = CGROUP) -> int:
    """What this machine has, cut down to what its control groups leave this process (v2, then v1)."""
    machine = psutil.virtual_memory().available
    own = cgroup / own_group()
    groups = [group for group in (own, *own.parents) if group.is_relative_to(cgroup)]
    left = [_left(group, "memory.max", "memory.current", "inactive_file") for group in groups]
    left.append(_left(cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
    return int(max(0, min(machine, *left)))


def _left(group: Path, limit: str, used: str, cache: str) -> float:
    """The group's limit less what it uses; cached files that nobody reads count as free."""
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return math.inf
        reclaimable = next(
            (
                int(line.split()[1])
                for line in (group / "memory.stat").read_text().splitlines()
                if line.startswith(cache)
            ),
            0,
        )
        return int(most) - int((group / used).read_text()) + reclaimable
    except (OSError, ValueError, IndexError):
        return math.inf
