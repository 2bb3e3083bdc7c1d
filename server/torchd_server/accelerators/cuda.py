"""NVIDIA GPUs and their MIG instances, found by nvidia-smi or their device files: the daemon never loads CUDA."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torchd_server.accelerators import tool
from torchd_server.accelerators.base import Device, Found

logger = logging.getLogger(__name__)

DEVICES = Path("/dev")
PCI = Path("/sys/bus/pci/devices")
# https://docs.nvidia.com/deploy/nvidia-smi/: fields of --query-gpu; memory in MiB.
FIELDS = ("index", "uuid", "name", "memory.total", "pci.bus_id", "mig.mode.current")
MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30
# `nvidia-smi -L`: a line for each GPU, and below it one for each of its MIG instances.
_GPU_LINE = re.compile(r"GPU (\d+):.*\(UUID: (GPU-[\w-]+)\)")
_MIG_LINE = re.compile(r"\s+MIG (\S+)\s+Device\s+\d+:\s+\(UUID: (MIG-[\w/-]+)\)")


@dataclass(frozen=True, slots=True)
class _Gpu:
    """One GPU as it is found, or one MIG instance of it. `number` counts GPUs in the order of their PCI bus."""

    number: int
    uuid: str = ""
    name: str = ""
    memory_bytes: int = 0
    numa_node: int | None = None
    instance: str = ""

    def is_called(self, name: str) -> bool:
        """Whether CUDA_VISIBLE_DEVICES means it: a number, or the beginning of a UUID."""
        if name.startswith("MIG-"):
            return self.instance.startswith(name)
        return self.uuid.startswith(name) if name.startswith("GPU-") else name == str(self.number)

    def device(self, index: int) -> Device:
        """As workers are lent it."""
        identity, is_part = self.instance or str(self.number), bool(self.instance)
        return Device(Cuda.name, index, identity, self.name, self.memory_bytes, self.numa_node, is_part)


class Cuda:
    """GPUs of NVIDIA."""

    name: ClassVar[str] = "cuda"
    device_type: ClassVar[str] = "gpu"
    unit: ClassVar[str] = "GPU"
    units: ClassVar[str] = "GPUs"
    exclusive: ClassVar[bool] = False

    def __init__(self, devices: Path = DEVICES, pci: Path = PCI, tool_seconds: float = tool.TOOL_SECONDS) -> None:
        self._devices = devices
        self._pci = pci
        self._tool_seconds = tool_seconds

    def discover(self, environment: Mapping[str, str]) -> Found:
        """By nvidia-smi, else by /dev/nvidia0 and so on; CUDA_VISIBLE_DEVICES of the daemon narrows what there is."""
        found, absence = self._search(environment)
        if not found:
            return Found(absence=absence)
        wish = environment.get("CUDA_VISIBLE_DEVICES")
        seen = found if wish is None else visible(wish, found)
        if not seen:
            return Found(
                absence=f"CUDA_VISIBLE_DEVICES={wish!r} hides the GPUs of this machine, which has {len(found)}"
            )
        return Found(tuple(gpu.device(index) for index, gpu in enumerate(seen)))

    def environment(self, devices: Sequence[Device]) -> dict[str, str]:
        """The numbers are nvidia-smi's, which counts by PCI bus; CUDA by itself would put the fastest first."""
        return {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(device.identity for device in devices),
        }

    def _search(self, environment: Mapping[str, str]) -> tuple[list[_Gpu], str]:
        program = tool.find("nvidia-smi", environment)
        files = self._by_files()
        if program is None:
            return files, f"nvidia-smi is not on PATH and there is no {self._devices}/nvidia0"
        try:
            gpus = self._by_tool(program, environment)
        except (tool.ToolFailed, ValueError) as error:
            logger.warning("nvidia-smi %s; %d GPUs are found by their device files", error, len(files))
            return files, f"nvidia-smi {error} and there is no {self._devices}/nvidia0"
        return gpus, "nvidia-smi finds no GPU"

    def _by_files(self) -> list[_Gpu]:
        names = (re.fullmatch(r"nvidia(\d+)", entry.name) for entry in self._devices.glob("nvidia*"))
        # A container has files of its own GPUs only, and CUDA counts those from 0.
        return [_Gpu(number) for number, _ in enumerate(sorted(int(name[1]) for name in names if name))]

    def _by_tool(self, program: str, environment: Mapping[str, str]) -> list[_Gpu]:
        query = [program, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
        rows = csv.reader(tool.ask(query, environment, self._tool_seconds).splitlines(), skipinitialspace=True)
        told = [_row(row) for row in rows if row]
        gpus = [
            _Gpu(int(row["index"]), row["uuid"], row["name"], _mebibytes(row["memory.total"]), self._numa_node(row))
            for row in told
        ]
        cut = {int(row["index"]) for row in told if row["mig.mode.current"] == "Enabled"}
        if not cut:
            return gpus
        return with_instances(gpus, cut, tool.ask([program, "-L"], environment, self._tool_seconds))

    def _numa_node(self, row: Mapping[str, str]) -> int | None:
        # The tool writes the domain with eight digits, the kernel with four.
        address = row["pci.bus_id"].lower()[-len("0000:00:00.0") :]
        try:
            node = int((self._pci / address / "numa_node").read_text())
        except (OSError, ValueError):
            return None
        return node if node >= 0 else None


def _row(row: Sequence[str]) -> dict[str, str]:
    if len(row) != len(FIELDS) or not row[0].isdecimal():
        raise ValueError(f"prints what is no row of {', '.join(FIELDS)}: {','.join(row)[:100]!r}")
    return dict(zip(FIELDS, row, strict=True))


def _mebibytes(text: str) -> int:
    return int(text) * MEBIBYTE if text.isdecimal() else 0  # "[N/A]" where it does not tell


def with_instances(gpus: Sequence[_Gpu], cut: Set[int], listed: str) -> list[_Gpu]:
    """The MIG instances that `nvidia-smi -L` lists, in the place of the GPUs in `cut`, which cannot be used whole."""
    instances: dict[int, list[_Gpu]] = {}
    by_number = {gpu.number: gpu for gpu in gpus}
    number = None
    for line in listed.splitlines():
        if gpu := _GPU_LINE.match(line):
            number = int(gpu[1])
        elif (part := _MIG_LINE.match(line)) and number in by_number:
            whole = by_number[number]
            memory = re.search(r"(\d+)gb", part[1])
            name, size = f"{whole.name} MIG {part[1]}", int(memory[1]) * GIBIBYTE if memory else 0
            instances.setdefault(number, []).append(replace(whole, name=name, memory_bytes=size, instance=part[2]))
    if empty := sorted(cut - instances.keys()):
        logger.warning("GPUs %s are in MIG mode and have no instance: `nvidia-smi mig -cgi ... -C` makes some", empty)
    return [part for gpu in gpus for part in (instances.get(gpu.number, []) if gpu.number in cut else [gpu])]


def visible(wish: str, gpus: Sequence[_Gpu]) -> list[_Gpu]:
    """Those that CUDA_VISIBLE_DEVICES names, in its order. As CUDA does it: the first name that is none ends the list,
    and a list that names one twice shows nothing."""
    seen: list[_Gpu] = []
    for entry in map(str.strip, wish.split(",")):
        named = [gpu for gpu in gpus if entry and gpu.is_called(entry)]
        # The beginning of a UUID must be that of one alone; a GPU stands for all MIG instances of it.
        if len({gpu.instance if entry.startswith("MIG-") else gpu.number for gpu in named}) != 1:
            return seen
        if any(gpu in seen for gpu in named):
            return []
        seen += named
    return seen
