"""What the daemon asks of a kind of device, and what it knows of each one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol


@dataclass(frozen=True, slots=True)
class Device:
    """One device, or one core of a device that has several."""

    # The family whose environment() makes it visible: a key of ACCELERATORS.
    accelerator: str
    # Its place among those of its device type: what deviceIds of model-config.yaml counts, from 0.
    index: int
    # What its environment variable calls it: a number of this machine, or a UUID.
    identity: str
    # For people: "NVIDIA H200", "NeuronCore of inf2.xlarge".
    name: str = ""
    memory_bytes: int = 0
    # The NUMA node it hangs on; None where that is not known.
    numa_node: int | None = None
    # Whether it is a part of a device (a MIG instance): a process can use one of those, and nothing beside it.
    is_part: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has found. `absence` says in one sentence why there is nothing, for `torchd devices`."""

    devices: tuple[Device, ...] = ()
    absence: str = ""


class Accelerator(Protocol):
    """A kind of device. Nothing of it is loaded into the daemon: it asks files and tools."""

    # How it is called: "cuda", "neuron".
    name: ClassVar[str]
    # Which deviceType of model-config.yaml means it: "cpu", "gpu" or "neuron".
    device_type: ClassVar[str]
    # What one device is called in a sentence, and what several are: "GPU", "NeuronCores".
    unit: ClassVar[str]
    units: ClassVar[str]
    # Whether a device belongs to one worker at a time, or may be shared by several.
    exclusive: ClassVar[bool]

    def discover(self, environment: Mapping[str, str]) -> Found:
        """Searches this machine, given the daemon's environment; a driver's tool may take seconds (use a thread).

        Never raises: what cannot be found out is an absence, or a warning in the log.
        """

    def environment(self, devices: Sequence[Device]) -> dict[str, str]:
        """Variables by which a process sees exactly these, set before its interpreter starts; of none: those that hide
        all, where there are such."""
