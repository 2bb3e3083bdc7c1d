"""NVIDIA GPUs, found by their device files: the daemon never loads CUDA."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

DEVICES = Path("/dev")


def visible_gpus(environment: Mapping[str, str], devices: Path = DEVICES) -> list[int]:
    """Indices a worker may use, as torch will count them: CUDA_VISIBLE_DEVICES narrows what the machine has."""
    found = sum(1 for entry in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", entry.name))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(range(found))
    named = [entry for entry in visible.split(",") if entry.strip() and entry.strip() != "-1"]
    return list(range(min(found, len(named))))
