"""What scripts/bench has measured, in every form it is shown in."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.contest import BARE, TORCHD, TORCHSERVE, TUNED, Outcome, Row

COLUMNS = ("work", "over", "server", "requests/s", "p50 ms", "p99 ms", "CPU µs", "MiB", "x TorchServe", "of bare")
# Flags that say how fast a CPU computes; its name often does not.
TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "sve")
# Where the clients use so much of their core, they were the bottleneck.
CLIENT_BOUND = 0.95


def cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """A row as text, one for each of COLUMNS."""
    name = row.server if not row.errors else f"{row.server} ({row.errors} errors: {row.first_error})"
    if row.server == BARE:
        name = {"rest": "bare httptools", "grpc": "bare grpc.aio"}.get(row.protocol, "bare model")
    if row.client_share >= CLIENT_BOUND:
        name += " (or more: the clients' core was full)"
    figures = (row.p50_ms, row.p99_ms)
    return (
        row.case,
        {"rest": "REST", "grpc": "gRPC"}.get(row.protocol, ""),
        name,
        f"{row.throughput:,.0f}" if row.throughput >= 100 else f"{row.throughput:.1f}",
        *(f"{figure:.1f}" if figure else "" for figure in figures),
        f"{row.cpu_us:,.0f}" if row.cpu_us else "",
        f"{row.memory_mib:,.0f}" if row.memory_mib else "",
        *(_times(ratio(row, rows, other)) for other in (TORCHSERVE, BARE)),
    )


def ratio(row: Row, rows: Sequence[Row], other: str) -> float:
    """torchd's throughput as a multiple of another server's at the same work; 0 where there is none."""
    if row.server not in (TORCHD, TUNED):
        return 0.0
    for against in rows:
        if against.case == row.case and against.server == other and against.protocol in (row.protocol, ""):
            return row.throughput / against.throughput if against.throughput else 0.0
    return 0.0


def _times(value: float) -> str:
    return f"{value:.2f}" if value else ""


def table(outcome: Outcome) -> Table:
    """The table of one case for a terminal."""
    rows = outcome.rows
    shown = Table(title=rows[0].case if rows else "", box=SIMPLE_HEAD)
    for name in COLUMNS[1:]:
        shown.add_column(name, justify="left" if name in ("over", "server") else "right")
    for row in rows:
        shown.add_row(*cells(row, rows)[1:])
    return shown


def markdown(outcomes: Sequence[Outcome], machine: Mapping[str, Any]) -> str:
    """A section for a page: machine, command, table."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    lines = [COLUMNS, ("---", "---", "---", *["---:"] * (len(COLUMNS) - 3)), *(cells(row, rows) for row in rows)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"`{machine['command']}`, {machine['date']}, {sentence(machine)}.\n\n{text}" + "".join(
        f"\n{said}\n" for said in differences(outcomes)
    )


def differences(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """A sentence for each case whose answers were compared."""
    for outcome in outcomes:
        if (found := outcome.difference) is not None:
            verdict = "as is allowed" if found.is_tolerable else "MORE than is allowed"
            yield (
                f"{outcome.rows[0].case}: over {found.answers} texts the scores of {TUNED} differ from "
                f"{TORCHSERVE}'s by {found.largest:.4f} at most, {found.largest / found.deviation:.3f} of their "
                f"standard deviation; the same score is the largest in {found.equal_top1:.1%}; {verdict}."
            )


def sentence(machine: Mapping[str, Any]) -> str:
    """The machine in words."""
    flags = ", ".join(machine["cpu_flags"]) or "no telling flags"
    return (
        f"{machine['cores']} cores of {machine['cpu']} ({flags}), Python {machine['python']}, torch {machine['torch']}"
    )


def machine_facts() -> dict[str, Any]:
    """What a figure is worth little without."""
    from importlib.metadata import PackageNotFoundError, version

    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE)
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "is not there"
    return {
        "cpu": name[1].strip() if name else platform.machine(),
        "cpu_flags": [flag for flag in TELLING_FLAGS if flags and flag in flags[1].split()],
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch,
    }


def document(outcomes: Sequence[Outcome], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, for JSON."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    return {
        "machine": dict(machine),
        "rows": [
            asdict(row) | {"times_torchserve": ratio(row, rows, TORCHSERVE), "of_bare": ratio(row, rows, BARE)}
            for row in rows
        ],
        "differences": [
            {"case": outcome.rows[0].case, **asdict(outcome.difference), "tolerable": outcome.difference.is_tolerable}
            for outcome in outcomes
            if outcome.difference is not None
        ],
    }
