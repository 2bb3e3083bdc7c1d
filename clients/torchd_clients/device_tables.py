"""What `torchd devices` shows a person."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from rich.table import Table

from torchd_clients.tables import printable
from torchd_protos.management_pb2 import AbsentAccelerator, DeviceDescription, DeviceHolder

GIBIBYTE = 2**30


def devices_table(devices: Iterable[DeviceDescription]) -> Table:
    """One row for each device; cores of the processor that have all in common are one row."""
    table = Table("device", "id", "name", "memory", "numa")
    table.add_column("held by", overflow="fold")
    for _, alike in groupby(devices, _what_is_shown):
        first, *rest = alike
        last = rest[-1] if rest else first
        table.add_row(
            f"{first.device_type} {_range(str(first.index), str(last.index))}",
            printable(_range(first.id, last.id)),
            printable(first.name),
            f"{first.memory_size / GIBIBYTE:.0f} GiB" if first.memory_size else "",
            str(first.numa_node) if first.HasField("numa_node") else "",
            printable(_held_by(first)),
        )
    return table


def absences(kinds: Iterable[AbsentAccelerator]) -> str:
    """A line for each kind that is not here."""
    return printable("\n".join(f"no {kind.accelerator}: {kind.reason}" for kind in kinds))


def _what_is_shown(device: DeviceDescription) -> tuple[object, ...]:
    alone = None if device.device_type == "cpu" else device.index
    return device.device_type, alone, device.name, device.numa_node, _held_by(device)


def _range(first: str, last: str) -> str:
    return first if first == last else f"{first}-{last}"


def _held_by(device: DeviceDescription) -> str:
    held = ", ".join(_name(holder) for holder in device.holders)
    return f"{held} (quarantined: its process could not be ended)".lstrip() if device.quarantined else held


def _name(holder: DeviceHolder) -> str:
    worker = f"worker {holder.worker_id} (pid {holder.pid})" if holder.worker_id else "starting"
    return f"{holder.model_name}/{holder.model_version} {worker}"
