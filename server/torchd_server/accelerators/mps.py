"""The GPU of Apple's processors: one to a machine, shared by all, and no variable hides it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torchd_server.accelerators.base import Device, Found


class Mps:
    """Metal."""

    name: ClassVar[str] = "mps"
    device_type: ClassVar[str] = "gpu"
    unit: ClassVar[str] = "GPU"
    units: ClassVar[str] = "GPUs"
    exclusive: ClassVar[bool] = False

    def __init__(self, system: str = "", machine: str = "") -> None:
        self._system = system
        self._machine = machine

    def discover(self, environment: Mapping[str, str]) -> Found:
        """By the processor."""
        system, machine = self._system or platform.system(), self._machine or platform.machine()
        if (system, machine) != ("Darwin", "arm64"):
            return Found(absence=f"this is {system} on {machine}; Metal is on macOS with Apple's processors")
        return Found((Device(self.name, 0, "0", "Apple GPU"),))

    def environment(self, devices: Sequence[Device]) -> dict[str, str]:
        """Nothing to set."""
        return {}
