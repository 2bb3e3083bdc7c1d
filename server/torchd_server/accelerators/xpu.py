"""Intel's GPUs for computing, found by their PCI class: graphics inside a processor do not count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from torchd_server.accelerators.base import Device, Found

CARDS = Path("/sys/class/drm")
INTEL = "0x8086"
# A display controller without a display: Data Center GPU Flex and Max.
COMPUTE_CLASS = "0x0380"


class Xpu:
    """GPUs of Intel, as Level Zero numbers them."""

    name: ClassVar[str] = "xpu"
    device_type: ClassVar[str] = "gpu"
    unit: ClassVar[str] = "GPU"
    units: ClassVar[str] = "GPUs"
    exclusive: ClassVar[bool] = False

    def __init__(self, cards: Path = CARDS) -> None:
        self._cards = cards

    def discover(self, environment: Mapping[str, str]) -> Found:
        """Render nodes of Intel's compute cards; TorchServe's handlers use them where TS_IPEX_GPU_ENABLE is true."""
        nodes = sorted(self._cards.glob("renderD*"))
        found = [node for node in nodes if _read(node, "vendor") == INTEL and _read(node, "class")[:6] == COMPUTE_CLASS]
        if not found:
            return Found(absence=f"{self._cards} lists no compute card of Intel")
        if environment.get("TS_IPEX_GPU_ENABLE", "false").lower() != "true":
            return Found(absence=f"TS_IPEX_GPU_ENABLE is not true, and without it handlers leave {len(found)} unused")
        return Found(tuple(Device(self.name, index, str(index), "Intel GPU") for index in range(len(found))))

    def environment(self, devices: Sequence[Device]) -> dict[str, str]:
        """Level Zero's mask."""
        if not devices:
            return {}
        return {"ZE_AFFINITY_MASK": ",".join(device.identity for device in devices)}


def _read(node: Path, name: str) -> str:
    try:
        return (node / "device" / name).read_text().strip()
    except OSError:
        return ""
