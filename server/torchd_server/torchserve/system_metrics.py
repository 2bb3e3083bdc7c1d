"""The machine's own numbers: psutil for the host, nvidia-smi for the GPUs. Read in a thread, never with torch."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import logging
import shutil
import subprocess
from collections.abc import Callable, Iterable

import psutil

logger = logging.getLogger(__name__)

MEGABYTE, GIGABYTE = 1 << 20, 1 << 30
QUERY = "index,utilization.gpu,memory.used,memory.total"
TOOL_SECONDS = 5.0
# A metric, its device or None for the host, its value.
Reading = tuple[str, str | None, float]


class SystemMetrics:
    """Reads the machine again and again and hands the readings on."""

    def __init__(
        self, record: Callable[[Iterable[Reading]], None], interval_seconds: float, gpu_tool: str | None
    ) -> None:
        self._record = record
        self._interval = interval_seconds
        self._gpu_tool = gpu_tool
        psutil.cpu_percent()  # counts from here

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                self._record(await asyncio.to_thread(self._read))
            except (OSError, psutil.Error) as error:
                logger.warning("the system's metrics could not be read: %s", error)
            await asyncio.sleep(self._interval)

    def _read(self) -> list[Reading]:
        return [*host(), *(gpus(self._gpu_tool) if self._gpu_tool else [])]


def gpu_tool(path: str | None) -> str | None:
    """Where nvidia-smi is on this PATH."""
    return shutil.which("nvidia-smi", path=path)


def host() -> list[Reading]:
    """Processor, disk and memory."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
    return [
        ("CPUUtilization", None, psutil.cpu_percent()),
        ("DiskAvailable", None, disk.free / GIGABYTE),
        ("DiskUsage", None, disk.used / GIGABYTE),
        ("DiskUtilization", None, disk.percent),
        ("MemoryAvailable", None, memory.available / MEGABYTE),
        ("MemoryUsed", None, memory.used / MEGABYTE),
        ("MemoryUtilization", None, memory.percent),
    ]


def gpus(tool: str) -> list[Reading]:
    """Each GPU's load and memory as `tool` (nvidia-smi) tells them; nothing where it cannot."""
    command = [tool, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        logger.debug("no metrics of GPUs: %s", error)
        return []
    return read_gpus(told)


def read_gpus(told: str) -> list[Reading]:
    """The readings in nvidia-smi's lines; what a device does not tell ("[N/A]") is left out."""
    found: list[Reading] = []
    for row in csv.reader(told.splitlines(), skipinitialspace=True):
        device, *texts = row
        load, used, total = (_number(text) for text in texts)
        if used is not None and total:
            found.append(("GPUMemoryUtilization", device, used / total * 100))
        if used is not None:
            found.append(("GPUMemoryUsed", device, used))
        if load is not None:
            found.append(("GPUUtilization", device, load))
    return found


def _number(text: str) -> float | None:
    with contextlib.suppress(ValueError):
        return float(text)
    return None
