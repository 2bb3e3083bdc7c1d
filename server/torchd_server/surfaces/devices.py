"""The devices as messages of ListDevices and DescribeModel, and as the JSON document of `GET /devices`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torchd_protos import management_pb2 as pb
from torchd_server.accelerators.base import Device
from torchd_server.accelerators.kinds import ACCELERATORS
from torchd_server.devices import DeviceStatus, Inventory
from torchd_server.model import RankStatus


def message(found: Inventory) -> pb.ListDevicesResponse:
    """The answer of ListDevices."""
    return pb.ListDevicesResponse(
        devices=[_description(status) for status in found.devices],
        absent=[
            pb.AbsentAccelerator(accelerator=kind.accelerator, device_type=kind.device_type, reason=kind.reason)
            for kind in found.absent
        ],
    )


def _description(status: DeviceStatus) -> pb.DeviceDescription:
    device = status.device
    return pb.DeviceDescription(
        device_type=status.device_type,
        index=device.index,
        accelerator=device.accelerator,
        id=device.identity,
        name=device.name,
        memory_size=device.memory_bytes,
        numa_node=device.numa_node,
        exclusive=status.exclusive,
        quarantined=status.quarantined,
        holders=[
            pb.DeviceHolder(
                model_name=holder.model, model_version=holder.version, worker_id=holder.worker, pid=holder.pid
            )
            for holder in status.holders
        ],
    )


def references(devices: Iterable[Device]) -> list[pb.DeviceReference]:
    """What a worker or one of its processes was lent."""
    return [
        pb.DeviceReference(
            device_type=ACCELERATORS[device.accelerator].device_type, index=device.index, id=device.identity
        )
        for device in devices
    ]


def rank(status: RankStatus) -> pb.RankDescription:
    """One process of a worker."""
    return pb.RankDescription(
        rank=status.rank,
        pid=status.pid,
        state=f"WORKER_STATE_{status.state.upper()}",
        progress=status.progress,
        devices=references(status.devices),
    )


def document(found: Inventory) -> dict[str, Any]:
    """The same for REST, with keys as TorchServe writes its own."""
    return {
        "devices": [_row(status) for status in found.devices],
        "absent": [
            {"accelerator": kind.accelerator, "deviceType": kind.device_type, "reason": kind.reason}
            for kind in found.absent
        ],
    }


def _row(status: DeviceStatus) -> dict[str, Any]:
    device = status.device
    return {
        "deviceType": status.device_type,
        "index": device.index,
        "accelerator": device.accelerator,
        "id": device.identity,
        "name": device.name,
        "memorySize": device.memory_bytes,
        **({} if device.numa_node is None else {"numaNode": device.numa_node}),
        "exclusive": status.exclusive,
        "quarantined": status.quarantined,
        "holders": [
            {
                "modelName": holder.model,
                "modelVersion": holder.version,
                "workerId": holder.worker,
                "pid": holder.pid,
            }
            for holder in status.holders
        ],
    }
