"""The devices of this machine as an operator sees them: what there is, who holds it, what is not there and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torchd_server.accelerators.base import Device
from torchd_server.accelerators.kinds import ACCELERATORS
from torchd_server.accelerators.ledger import DeviceLedger, Lease
from torchd_server.model import ModelVersion, WorkerStatus


@dataclass(frozen=True, slots=True)
class Holder:
    """A slot that holds a device; its worker has no name and no process while it is to be started again."""

    model: str
    version: str
    worker: str = ""
    pid: int = 0


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One device and who holds it."""

    device: Device
    device_type: str
    exclusive: bool
    quarantined: bool
    holders: tuple[Holder, ...]


@dataclass(frozen=True, slots=True)
class Absence:
    """A kind of device that is not here, and why."""

    accelerator: str
    device_type: str
    reason: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything there is, and what there is not."""

    devices: tuple[DeviceStatus, ...]
    absent: tuple[Absence, ...]


def inventory(ledger: DeviceLedger, models: Iterable[ModelVersion]) -> Inventory:
    """What the ledger knows, with the workers of these models for its leases."""
    workers: dict[Lease, WorkerStatus | None] = {}
    for model in models:
        workers |= model.leases()
    return Inventory(
        tuple(_status(device, ledger, workers) for device in ledger.devices()),
        tuple(Absence(name, ACCELERATORS[name].device_type, reason) for name, reason in ledger.absences.items()),
    )


def _status(device: Device, ledger: DeviceLedger, workers: dict[Lease, WorkerStatus | None]) -> DeviceStatus:
    kind = ACCELERATORS[device.accelerator]
    holders = (_holder(lease, workers.get(lease)) for lease in ledger.leases() if device in lease.devices)
    return DeviceStatus(device, kind.device_type, kind.exclusive, ledger.is_quarantined(device), tuple(holders))


def _holder(lease: Lease, worker: WorkerStatus | None) -> Holder:
    if worker is None:
        return Holder(lease.model, lease.version)
    return Holder(lease.model, lease.version, worker.name, worker.pid)
