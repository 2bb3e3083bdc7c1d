"""What a machine has to compute with, as far as a search needs to know."""

from __future__ import annotations

import os
import re

from torchd_clients.tune.space import Machine
from torchd_protos.management_pb2 import ListDevicesResponse

# Of x86 and of Arm. AVX-512 without it, and AVX2, convert each number.
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
_TOLD = re.compile(r"avx2|avx512f|avx512_bf16|avx512_fp16|avx512_vnni|avx_vnni|amx_\w+|bf16|i8mm|sve\w*")


def machine_of(devices: ListDevicesResponse, cpuinfo: str) -> Machine:
    """The machine the daemon found; `cpuinfo` is the kernel's text about its processor."""
    gpus = [device for device in devices.devices if device.device_type == "gpu"]
    return Machine(len(os.sched_getaffinity(0)), len(gpus), bool(gpus or _BFLOAT16 & _flags(cpuinfo)))


def processor(cpuinfo: str) -> str:
    """The processor's name and what it has for fast arithmetic, for people."""
    name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    told = sorted(flag for flag in _flags(cpuinfo) if _TOLD.fullmatch(flag))
    return f"{name[1].strip() if name else 'processor'} ({' '.join(told) or 'no vector flags told'})"


def _flags(cpuinfo: str) -> frozenset[str]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return frozenset(found[1].split() if found else ())
