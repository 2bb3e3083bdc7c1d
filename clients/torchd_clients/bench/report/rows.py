"""A row of a report: one setting, and what it gave or why it gave nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torchd_clients.bench.measurement import Point

SKIPPED = "skipped: "


@dataclass(frozen=True, slots=True)
class Row:
    """`group` is the table it stands in: <mode>_<model> of a suite, else the model. `why` there is no point."""

    group: str
    archive: str
    input: str
    protocol: str
    device: str
    workers: int
    batch_size: int
    batch_delay_ms: int
    clients: int
    requests: int
    point: Point | None = None
    why: str = ""

    @property
    def is_skipped(self) -> bool:
        """It was left out, not tried in vain."""
        return self.why.startswith(SKIPPED)

    @property
    def asked(self) -> str:
        """The load in words."""
        if self.point is not None and self.point.rate:
            return f"{self.point.rate:g}/s"
        return f"{self.clients} client" + "s" * (self.clients != 1)


def row_of(point: Point, archive: str = "") -> Row:
    """A point that no suite asked for."""
    return Row(
        group=point.model,
        archive=archive or point.model,
        input=point.input,
        protocol=point.protocol,
        device=point.device,
        workers=point.workers,
        batch_size=point.batch_size,
        batch_delay_ms=point.batch_delay_ms,
        clients=point.clients,
        requests=point.measurement.answered + point.measurement.failed,
        point=point,
    )


def by_group(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each table, in order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return groups


def points_of(rows: Sequence[Row]) -> list[Point]:
    """What was measured."""
    return [row.point for row in rows if row.point is not None]
