"""AMD GPUs, found in the kernel's list of compute nodes: no tool of ROCm is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from torchd_server.accelerators.base import Device, Found

T = TypeVar("T")
NODES = Path("/sys/class/kfd/kfd/topology/nodes")


class Rocm:
    """GPUs of AMD, as ROCm numbers them."""

    name: ClassVar[str] = "rocm"
    device_type: ClassVar[str] = "gpu"
    unit: ClassVar[str] = "GPU"
    units: ClassVar[str] = "GPUs"
    exclusive: ClassVar[bool] = False

    def __init__(self, nodes: Path = NODES) -> None:
        self._nodes = nodes

    def discover(self, environment: Mapping[str, str]) -> Found:
        """Nodes with compute units; ROCR_VISIBLE_DEVICES and then HIP_VISIBLE_DEVICES of the daemon narrow them."""
        nodes = sorted(self._nodes.glob("*"), key=lambda node: int(node.name) if node.name.isdecimal() else -1)
        found = [node for node in nodes if _properties(node).get("simd_count", "0") != "0"]
        if not found:
            return Found(absence=f"{self._nodes} lists no GPU of AMD")
        # HIP counts what ROCR leaves it.
        seen = list(enumerate(_named(environment.get("ROCR_VISIBLE_DEVICES"), found)))
        seen = _named(environment.get("HIP_VISIBLE_DEVICES"), seen)
        if not seen:
            return Found(absence=f"HIP_VISIBLE_DEVICES or ROCR_VISIBLE_DEVICES hides the {len(found)} GPUs")
        return Found(
            tuple(Device(self.name, index, str(number), _name(node)) for index, (number, node) in enumerate(seen))
        )

    def environment(self, devices: Sequence[Device]) -> dict[str, str]:
        """HIP_VISIBLE_DEVICES, which PyTorch's ROCm build reads."""
        return {"HIP_VISIBLE_DEVICES": ",".join(device.identity for device in devices)}


def _properties(node: Path) -> dict[str, str]:
    try:
        lines = (node / "properties").read_text().splitlines()
    except OSError:  # a node of another container's GPU cannot be read
        return {}
    return {name: value for name, _, value in (line.partition(" ") for line in lines)}


def _name(node: Path) -> str:
    try:
        return f"AMD {(node / 'name').read_text().strip()}".strip()
    except OSError:
        return "AMD GPU"


def _named(wish: str | None, found: Sequence[T]) -> list[T]:
    """Those whose numbers `wish` lists, up to the first entry that is none; all without a wish."""
    if wish is None:
        return list(found)
    seen: list[T] = []
    for entry in wish.split(","):
        if not entry.strip().isdecimal() or int(entry) >= len(found):
            break
        seen.append(found[int(entry)])
    return seen
