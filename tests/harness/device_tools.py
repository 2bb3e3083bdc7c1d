"""Stand-ins for the tools of drivers: they print what the real ones print, on machines that have no such device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_tool(folder: Path, name: str, script: str) -> Path:
    """A shell script as a tool in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tool = folder / name
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    return tool


def neuron_devices(devices: int, cores: int = 2, **fields: Any) -> list[dict[str, Any]]:
    """What `neuron-ls -j` lists on a machine with so many devices, as its documentation shows it."""
    return [
        {
            "neuron_device": number,
            "bdf": f"0000:{number:02x}:1e.0",
            "connected_to": [number + 1],
            "nc_count": cores,
            "memory_size": 34359738368,
            "neuron_processes": [],
            **fields,
        }
        for number in range(devices)
    ]


# How neuron-ls is asked for JSON: up to Neuron 2.33, and since.
OLD, NEW = "-j", "--output-format json"


def write_neuron_ls(folder: Path, document: Any, form: str = OLD) -> Path:
    """A neuron-ls that prints this document when it is asked for JSON in this form, and knows no other."""
    return write_tool(folder, "neuron-ls", f"[ \"$*\" = '{form}' ] || exit 2\ncat <<'END'\n{json.dumps(document)}\nEND")


def gpu_rows(gpus: int, mig: Sequence[int] = ()) -> str:
    """nvidia-smi's lines for as many GPUs; those in `mig` are cut into instances."""
    return "\n".join(
        f"{number}, GPU-0000000{number}-1111-2222-3333-444444444444, NVIDIA H200, 143771, "
        f"00000000:{number:02X}:00.0, {'Enabled' if number in mig else 'Disabled'}"
        for number in range(gpus)
    )


def write_nvidia_smi(folder: Path, rows: str, listed: str = "") -> Path:
    """An nvidia-smi that answers the query of devices with these rows, -L with `listed`, and nothing else."""
    return write_tool(
        folder,
        "nvidia-smi",
        'case "$1" in\n'
        f"--query-gpu=index,uuid,*) cat <<'END'\n{rows}\nEND\n;;\n"
        f"-L) cat <<'END'\n{listed}\nEND\n;;\n"
        "*) exit 2;;\nesac",
    )
