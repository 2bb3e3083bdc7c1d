"""How much of a GPU's memory each process has, by nvidia-smi."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection

_COMMAND = ("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
_SECONDS = 20.0


def memory_by_process(text: str) -> dict[int, int]:
    """Megabytes by process, over all GPUs, from nvidia-smi's lines; what it cannot tell ([N/A]) is left out."""
    found: dict[int, int] = {}
    for line in text.splitlines():
        pid, _, used = (word.strip() for word in line.partition(","))
        if pid.isdecimal() and used.isdecimal():
            found[int(pid)] = found.get(int(pid), 0) + int(used)
    return found


def memory_per_worker(pids: Collection[int]) -> int | None:
    """The megabytes of the largest of these processes; None where nvidia-smi is not there or sees none of them."""
    if shutil.which(_COMMAND[0]) is None:
        return None
    done = subprocess.run(_COMMAND, capture_output=True, text=True, timeout=_SECONDS, check=False)
    # In a container it may tell the numbers that processes have outside.
    known = [used for pid, used in memory_by_process(done.stdout).items() if pid in pids]
    return max(known, default=None)
