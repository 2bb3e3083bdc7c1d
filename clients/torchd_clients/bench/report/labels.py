"""What a row is called beside others: only what tells them apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torchd_clients.bench.report.rows import Row


def setting_labels(rows: Sequence[Row], with_load: bool = True) -> list[str]:
    """A label for each row, of what is not the same in all of them; `with_load` false leaves out how many ask."""
    told = [_parts(row, with_load) for row in rows]
    varying = [part for part in zip(*told, strict=True) if len(set(part)) > 1]
    if not varying:
        return [rows[0].asked if with_load else f"{rows[0].workers} workers"] * len(rows)
    return [", ".join(parts) for parts in zip(*varying, strict=True)]


def title(row: Row, shared: Iterable[Row]) -> str:
    """What all rows of one picture have in common."""
    shared = list(shared)
    told = [_parts(one, True) for one in shared]
    same = [part[0] for part in zip(*told, strict=True) if len(set(part)) == 1]
    return ", ".join([row.group, row.protocol, *same])


def _parts(row: Row, with_load: bool) -> list[str]:
    parts = [
        row.device,
        f"{row.workers} worker" + "s" * (row.workers != 1),
        f"batch {row.batch_size}",
        f"{row.batch_delay_ms} ms delay",
        row.input.rpartition("/")[2],
    ]
    return [*parts, row.asked] if with_load else parts
