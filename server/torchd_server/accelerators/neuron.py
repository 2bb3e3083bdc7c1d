"""NeuronCores of AWS Inferentia and Trainium, found by neuron-ls or their device files.

The tool's JSON and the runtime's variables are those of the Neuron documentation,
https://awsdocs-neuron.readthedocs-hosted.com: tools/neuron-sys-tools/neuron-ls.html and
neuron-runtime/nrt-configurable-parameters.html.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torchd_server.accelerators import tool
from torchd_server.accelerators.base import Device, Found

logger = logging.getLogger(__name__)

DEVICES = Path("/dev")
PRODUCT = Path("/sys/devices/virtual/dmi/id/product_name")
# Where the package aws-neuronx-tools puts it, which is not on everybody's PATH.
TOOL = "/opt/aws/neuron/bin/neuron-ls"
# NeuronCores of a device that does not say it itself: Inferentia2 and Trainium1 have two, Inferentia1 four, and
# Trainium2 shows its eight as four (the logical cores of its default configuration).
CORES_PER_DEVICE = {"inf1": 4, "inf2": 2, "trn1": 2, "trn1n": 2, "trn2": 4}
CORES_OF_UNKNOWN = 2
# NeuronCores of a whole instance, from the tutorial of the Neuron SDK for TorchServe.
CORES_OF_INSTANCE = {
    "inf2.xlarge": 2,
    "inf2.8xlarge": 2,
    "inf2.24xlarge": 12,
    "inf2.48xlarge": 24,
    "trn1.2xlarge": 2,
    "trn1.32xlarge": 32,
}


class Neuron:
    """NeuronCores: each belongs to one process until that has ended."""

    name: ClassVar[str] = "neuron"
    device_type: ClassVar[str] = "neuron"
    unit: ClassVar[str] = "NeuronCore"
    units: ClassVar[str] = "NeuronCores"
    exclusive: ClassVar[bool] = True

    def __init__(
        self,
        devices: Path = DEVICES,
        product: Path = PRODUCT,
        elsewhere: str = TOOL,
        tool_seconds: float = tool.TOOL_SECONDS,
    ) -> None:
        self._devices = devices
        self._product = product
        self._elsewhere = elsewhere
        self._tool_seconds = tool_seconds

    def discover(self, environment: Mapping[str, str]) -> Found:
        """By neuron-ls, else by /dev/neuron0 and so on; the daemon's own NEURON_RT_* narrow what there is."""
        cores, absence = self._search(environment)
        if not cores:
            return Found(absence=absence)
        try:
            seen = _narrowed(cores, environment)
        except ValueError as error:
            return Found(absence=str(error))
        if not seen:
            return Found(absence=f"NEURON_RT_VISIBLE_CORES names none of the {len(cores)} NeuronCores of this machine")
        numbered = enumerate(seen)
        return Found(
            tuple(
                Device(self.name, index, core.identity, core.name, core.memory_bytes, core.numa_node)
                for index, core in numbered
            )
        )

    def environment(self, devices: Sequence[Device]) -> dict[str, str]:
        """A range where they are one, else a list; the number of them for handlers that read it. Nothing hides all."""
        if not devices:
            return {}
        numbers = [int(device.identity) for device in devices]
        first, last = numbers[0], numbers[-1]
        is_range = len(numbers) > 1 and numbers == list(range(first, last + 1))
        return {
            "NEURON_RT_VISIBLE_CORES": f"{first}-{last}" if is_range else ",".join(map(str, numbers)),
            "NEURON_RT_NUM_CORES": str(len(numbers)),
        }

    def _search(self, environment: Mapping[str, str]) -> tuple[list[Device], str]:
        program = tool.find("neuron-ls", environment, self._elsewhere)
        if program is None:
            return self._by_files(), self._absence("neuron-ls is not on PATH")
        try:
            told = json.loads(tool.ask([program, "-j"], environment, self._tool_seconds))
            return _told(told), "neuron-ls finds no device"
        except (tool.ToolFailed, ValueError, RecursionError) as error:
            cores = self._by_files()
            why = str(error) if isinstance(error, tool.ToolFailed) else f"prints what it should not: {error}"
            logger.warning("neuron-ls %s; %d NeuronCores are found by the device files", why, len(cores))
            return cores, self._absence(f"neuron-ls {why}")

    def _by_files(self) -> list[Device]:
        instance = self._instance()
        each = CORES_PER_DEVICE.get(instance.partition(".")[0], CORES_OF_UNKNOWN)
        devices = [entry for entry in self._devices.glob("neuron*") if re.fullmatch(r"neuron\d+", entry.name)]
        return [Device(self.name, core, str(core), _name(instance)) for core in range(len(devices) * each)]

    def _instance(self) -> str:
        """The type of this EC2 instance, where the firmware names it; nobody is asked over the network."""
        try:
            return self._product.read_text().strip()
        except OSError:
            return ""

    def _absence(self, why: str) -> str:
        nothing = f"{why} and there is no {self._devices}/neuron0"
        cores = CORES_OF_INSTANCE.get(self._instance())
        if cores is None:
            return nothing
        return f"{nothing}: {self._instance()} has {cores} NeuronCores, which need the Neuron driver to be seen"


def _name(instance: str) -> str:
    return f"NeuronCore of {instance}" if instance else "NeuronCore"


def _told(devices: Any) -> list[Device]:
    """The cores in neuron-ls's document; raises ValueError where it is none."""
    if isinstance(devices, dict):
        devices = devices.get("neuron_devices")
    if not isinstance(devices, list) or not all(isinstance(device, dict) for device in devices):
        raise ValueError("no list of devices")
    cores: list[Device] = []
    for device in sorted(devices, key=lambda device: _number(device.get("neuron_device"))):
        count = _number(device.get("nc_count"))
        identities = device.get("neuroncore_ids") or list(range(len(cores), len(cores) + count))
        if not isinstance(identities, list):
            raise ValueError(f"{identities!r} is no list of cores")
        memory = device.get("memory_size")
        memory_bytes = memory // count if type(memory) is int and count else 0
        node = str(device.get("numa_node"))
        cores += [
            Device(
                Neuron.name,
                0,
                str(_number(identity)),
                _name(str(device.get("instance_type") or "")),
                memory_bytes,
                int(node) if node.isdecimal() else None,
            )
            for identity in identities
        ]
    if len({core.identity for core in cores}) < len(cores):
        raise ValueError("a core is listed twice")
    return cores


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 10_000:
        raise ValueError(f"{value!r} is no number of a device or core")
    return value


def _narrowed(cores: Sequence[Device], environment: Mapping[str, str]) -> list[Device]:
    """NEURON_RT_VISIBLE_CORES stands above NEURON_RT_NUM_CORES, as in the runtime. Raises ValueError."""
    wish = environment.get("NEURON_RT_VISIBLE_CORES", "").strip()
    if wish:
        wanted: list[int] = []
        for entry in wish.split(","):
            ends = re.fullmatch(r"\s*(\d{1,4})(?:\s*-\s*(\d{1,4}))?\s*", entry)
            if ends is None:
                raise ValueError(f"NEURON_RT_VISIBLE_CORES={wish!r} cannot be read; write a range, 0-3, or a list, 0,2")
            wanted += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
        return [core for core in cores if int(core.identity) in wanted]
    count = environment.get("NEURON_RT_NUM_CORES", "").strip()
    if count and not count.isdecimal():
        raise ValueError(f"NEURON_RT_NUM_CORES={count!r} is no number of cores")
    return list(cores)[: int(count or 0) or None]
