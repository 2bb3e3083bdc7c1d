"""Every kind of device there is, and the search for all of them."""

from __future__ import annotations

from collections.abc import Mapping

from torchd_server.accelerators.base import Accelerator, Found
from torchd_server.accelerators.cpu import Cpu
from torchd_server.accelerators.cuda import Cuda
from torchd_server.accelerators.mps import Mps
from torchd_server.accelerators.neuron import Neuron
from torchd_server.accelerators.rocm import Rocm
from torchd_server.accelerators.xpu import Xpu

# In the order in which they are asked: of those with one device type, the first that is there serves it.
ACCELERATORS: dict[str, Accelerator] = {kind.name: kind for kind in (Cuda(), Rocm(), Xpu(), Mps(), Neuron(), Cpu())}


def search(
    environment: Mapping[str, str],
    gpus: int | None = None,
    accelerators: Mapping[str, Accelerator] = ACCELERATORS,
) -> dict[str, Found]:
    """What each kind finds on this machine, `gpus` GPUs at most; may take seconds (use a thread)."""
    found: dict[str, Found] = {}
    taken: dict[str, str] = {}
    for name, kind in accelerators.items():
        if other := taken.get(kind.device_type):
            found[name] = Found(absence=f"not looked for: the devices of type {kind.device_type} are those of {other}")
            continue
        found[name] = kind.discover(environment)
        if found[name].devices:
            taken[kind.device_type] = name
            if kind.device_type == "gpu" and gpus is not None:
                found[name] = _at_most(gpus, found[name])
    return found


def _at_most(gpus: int, found: Found) -> Found:
    kept = found.devices[:gpus]
    return Found(kept, "" if kept else f"number_of_gpu is {gpus}, and this machine has {len(found.devices)}")
