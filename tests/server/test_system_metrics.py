"""The machine's numbers: what they are called, and what nvidia-smi says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from fakes import in_loop

from torchd_server.torchserve import metrics_config
from torchd_server.torchserve.system_metrics import Reading, SystemMetrics, gpu_tool, gpus, host, read_gpus

SAID = "0, 17, 1024, 4096\n1, [N/A], 512, 81559\n2, [Unknown Error], [N/A], [N/A]\n"


def test_the_host_has_seven_readings_that_metrics_yaml_knows() -> None:
    readings = host()
    assert {name for name, _, _ in readings} == {
        "CPUUtilization",
        "DiskAvailable",
        "DiskUsage",
        "DiskUtilization",
        "MemoryAvailable",
        "MemoryUsed",
        "MemoryUtilization",
    }
    assert all(value >= 0 and device is None for _, device, value in readings)
    assert {name for name, _, _ in readings} <= metrics_config.read(None).server.keys()


def test_what_a_gpu_does_not_tell_is_left_out() -> None:
    assert read_gpus(SAID) == [
        ("GPUMemoryUtilization", "0", 25.0),
        ("GPUMemoryUsed", "0", 1024.0),
        ("GPUUtilization", "0", 17.0),
        ("GPUMemoryUtilization", "1", 512 / 81559 * 100),
        ("GPUMemoryUsed", "1", 512.0),
    ]


def tool(folder: Path, script: str) -> str:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_the_tool_is_asked_and_its_failure_is_no_reading(tmp_path: Path) -> None:
    path = tool(tmp_path, f"case $1 in --query-gpu=index,*) printf '{SAID.splitlines()[0]}\\n';; *) exit 1;; esac")
    assert gpu_tool(str(tmp_path)) == path
    assert [value for _, _, value in gpus(path)] == [25.0, 1024.0, 17.0]
    assert gpus(tool(tmp_path, "exit 9")) == []
    assert gpus(str(tmp_path / "gone")) == []
    assert gpu_tool(str(tmp_path / "nowhere")) is None


@in_loop
async def test_it_reads_again_and_again_until_it_is_cancelled() -> None:
    rounds: asyncio.Queue[list[Reading]] = asyncio.Queue()

    def record(readings: Iterable[Reading]) -> None:
        rounds.put_nowait(list(readings))

    task = asyncio.create_task(SystemMetrics(record, 0.01, None).run())
    for _ in range(3):
        assert len(await asyncio.wait_for(rounds.get(), 10)) == 7
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
