"""NeuronCores of AWS Inferentia and Trainium, found by neuron-ls or their device files.

The tool's JSON and the runtime's variables are those of the Neuron documentation,
https://awsdocs-neuron.readthedocs-hosted.com: tools/neuron-sys-tools/neuron-ls.html,
about-neuron/announcements/neuron2.x/announce-intent-eos-neuron-ls-json.html,
neuron-runtime/nrt-configurable-parameters.html and about-neuron/arch/neuron-features/logical-neuroncore-config.html.
"""

from __future__ import annotations

import json
import logging
import re
import time
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
# How it is asked for JSON: since Neuron 2.34, and before.
FORMS = (("--output-format", "json"), ("-j",))
# NeuronCores of a device that does not say it itself.
CORES_PER_DEVICE = {"inf1": 4, "inf2": 2, "trn1": 2, "trn1n": 2}
CORES_OF_UNKNOWN = 2
# Devices from Trainium2 on have eight, and a process sees them joined: in pairs, unless NEURON_LOGICAL_NC_CONFIG is 1.
JOINED = 8
CORES_IN_ONE = 2
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
            return self._by_files(environment), self._absence("neuron-ls is not on PATH")
        failures = []
        end = time.monotonic() + self._tool_seconds
        for form in FORMS:
            try:
                told = json.loads(tool.ask([program, *form], environment, end - time.monotonic()))
                return _told(told, _joined(environment)), "neuron-ls finds no device"
            except (tool.ToolFailed, ValueError, RecursionError) as error:
                why = error if isinstance(error, tool.ToolFailed) else f"prints what it should not: {error}"
                failures.append(f"{' '.join(form)} {why}")
            if time.monotonic() >= end:  # it hangs, and would again
                break
        cores, why = self._by_files(environment), ", ".join(failures)
        logger.warning("neuron-ls %s; %d NeuronCores are found by the device files", why, len(cores))
        return cores, self._absence(f"neuron-ls {why}")

    def _by_files(self, environment: Mapping[str, str]) -> list[Device]:
        instance = self._instance()
        family = instance.partition(".")[0]
        each = CORES_PER_DEVICE.get(family, CORES_OF_UNKNOWN)
        if family.startswith("trn") and family not in CORES_PER_DEVICE:
            each = JOINED // (_joined(environment) or CORES_IN_ONE)
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


def _joined(environment: Mapping[str, str]) -> int:
    """How many NeuronCores of a device are one to a process, if the daemon's environment says it; else 0."""
    wish = environment.get("NEURON_LOGICAL_NC_CONFIG", "").strip()
    return int(wish) if wish in ("1", "2") else 0


def _told(document: Any, joined: int) -> list[Device]:
    """The cores in neuron-ls's document; raises ValueError where it is none."""
    machine: dict[str, Any] = document if isinstance(document, dict) else {}
    devices = _listed(machine) if machine else document
    if not isinstance(devices, list) or not all(isinstance(device, dict) for device in devices):
        raise ValueError("no list of devices")
    cores: list[Device] = []
    for device in sorted(devices, key=lambda device: _number(device.get("neuron_device"))):
        identities = _identities(machine | device, len(cores), joined)
        memory = device.get("memory_size")
        memory_bytes = memory // len(identities) if type(memory) is int and identities else 0
        node = str(device.get("numa_node"))
        instance = str((machine | device).get("instance_type") or "")
        cores += [
            Device(Neuron.name, 0, str(core), _name(instance), memory_bytes, int(node) if node.isdecimal() else None)
            for core in identities
        ]
    if len({core.identity for core in cores}) < len(cores):
        raise ValueError("a core is listed twice")
    return cores


def _listed(machine: Mapping[str, Any]) -> Any:
    """Neuron 2.34 says what holds for the whole machine once; under which name the devices stand is not published."""
    lists = [value for value in machine.values() if isinstance(value, list)]
    filled = [value for value in lists if any(isinstance(one, dict) and "nc_count" in one for one in value)]
    empty = [machine[name] for name in ("neuron_devices", "devices") if machine.get(name) == []]
    return next(iter([*filled, *empty]), None)


def _identities(device: Mapping[str, Any], before: int, joined: int) -> list[int]:
    """What the runtime calls the cores of this device, of which `before` come first; `joined` is the daemon's wish."""
    count = _number(device.get("nc_count"))
    named = device.get("neuroncore_ids")
    numbers = [_number(number) for number in named] if isinstance(named, list) else []
    told = device.get("logical_neuroncore_config")
    in_one = told if told in (1, 2) else CORES_IN_ONE
    if numbers and joined and told in (1, 2) and joined != told:
        # The tool was configured otherwise than the workers will be.
        first, count = numbers[0] * in_one // joined, len(numbers) * in_one // joined
        return list(range(first, first + count))
    if not numbers and count == JOINED:  # early tools counted what no process sees by itself
        count //= joined or in_one
    return numbers or list(range(before, before + count))


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
