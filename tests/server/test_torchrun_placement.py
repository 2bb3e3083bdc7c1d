"""Workers of several real processes: what each rank inherits, and that all of them come to be or none."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from fakes import in_loop, turns, until

from torchd_protos.frames import PROTOCOL_VERSION, FrameReader, Hello, Message
from torchd_server import faults
from torchd_server.placement import ThisMachine
from torchd_server.placement.base import WorkerProcess, WorkerSpec

ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PATH": "/usr/bin:/bin"}


def spec(folder: Path, *ranks: dict[str, str], cores: tuple[int, ...] = ()) -> WorkerSpec:
    return WorkerSpec("m/1.0", 7, folder, {"OMP_NUM_THREADS": "3"}, ranks=ranks, cores=cores)


@asynccontextmanager
async def launched(spec: WorkerSpec, lines: list[tuple[int, str, str]]) -> AsyncIterator[list[WorkerProcess]]:
    """The processes of a worker, gone afterwards."""
    processes = await ThisMachine(ENVIRONMENT, None).launch(spec, lambda *line: lines.append(line))
    try:
        yield list(processes)
    finally:
        for process in processes:
            process.kill()
        await asyncio.wait([process.exited for process in processes])
        await asyncio.sleep(0)
        for process in processes:
            process.close()


async def said_hello(process: WorkerProcess) -> Message:
    reader = FrameReader()
    while True:
        data = await asyncio.get_running_loop().sock_recv(process.socket, 65536)
        assert data, "the worker has gone"
        for message in reader.feed(data):
            return message


def options(process: psutil.Process) -> dict[str, str]:
    words = process.cmdline()[4:]
    return dict(zip(words[::2], words[1::2], strict=True))


def sockets_of(process: psutil.Process) -> list[str]:
    """The sockets it holds, by their inodes; those of its standard streams are pipes."""
    folder = f"/proc/{process.pid}/fd"
    names = {int(name): os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}
    return [target for target in names.values() if target.startswith("socket:")]


@in_loop
async def _ranks(tmp_path: Path) -> None:
    lines: list[tuple[int, str, str]] = []
    own = ({"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "none"})
    async with launched(spec(tmp_path, *own), lines) as processes:
        for rank, process in enumerate(processes):
            assert await said_hello(process) == Hello(PROTOCOL_VERSION, 7, rank, process.pid)
        living = [psutil.Process(process.pid) for process in processes]
        environments = [process.environ() for process in living]
        told = [options(process) for process in living]
        assert all(os.getsid(process.pid) == process.pid for process in processes)
        assert [len(sockets_of(process)) for process in living] == [4, 2, 2], "a rank holds a socket of another"
        processes[2].dump_stacks()
        await until(lambda: any("most recent call first" in line for _, _, line in lines))
        assert {rank for rank, _, _ in lines} == {2}
    for rank, environment in enumerate(environments):
        shown = {name: environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")}
        assert shown == {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
        assert (environment["MASTER_ADDR"], environment["GROUP_RANK"]) == ("127.0.0.1", "0")
        assert (environment["GLOO_SOCKET_IFNAME"], environment["NCCL_SOCKET_IFNAME"]) == ("lo", "lo")
        assert (environment["OMP_NUM_THREADS"], environment["CUDA_VISIBLE_DEVICES"]) == (
            "3",
            own[rank]["CUDA_VISIBLE_DEVICES"],
        )
    (port,) = {environment["MASTER_PORT"] for environment in environments}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", int(port)))
    assert len(told[0]["--peers"].split(",")) == 2
    assert ["--leader" in given for given in told] == [False, True, True]


def test_each_rank_has_torchruns_environment_and_its_sockets_and_no_others(tmp_path: Path) -> None:
    _ranks(tmp_path)


@in_loop
async def _pinned(tmp_path: Path) -> None:
    async with launched(spec(tmp_path, {}, {}, cores=(0, 1)), []) as processes:
        for process in processes:
            await said_hello(process)
        assert [psutil.Process(process.pid).cpu_affinity() for process in processes] == [[0], [1]]


def test_each_rank_has_cores_to_itself(tmp_path: Path) -> None:
    """As docs/devices.md and DescribeModel say of coresPerWorker."""
    _pinned(tmp_path)


@in_loop
async def _alone(tmp_path: Path) -> None:
    async with launched(spec(tmp_path, {"NEURON_RT_VISIBLE_CORES": "3"}), []) as (process,):
        assert await said_hello(process) == Hello(PROTOCOL_VERSION, 7, 0, process.pid)
        living = psutil.Process(process.pid)
        assert living.environ()["NEURON_RT_VISIBLE_CORES"] == "3"
        assert "RANK" not in living.environ()
        assert not {"--peers", "--leader", "--cores"} & options(living).keys()


def test_a_worker_of_one_process_knows_nothing_of_ranks(tmp_path: Path) -> None:
    _alone(tmp_path)


@in_loop
async def _half(tmp_path: Path) -> None:
    spawned = 0

    def no_third(point: str) -> None:
        nonlocal spawned
        if point == "worker.spawn":
            spawned += 1
            if spawned == 3:
                raise BlockingIOError(11, "Resource temporarily unavailable")

    before = {child.pid for child in psutil.Process().children()}
    faults.install(no_third)
    try:
        with pytest.raises(BlockingIOError):
            await ThisMachine(ENVIRONMENT, None).launch(spec(tmp_path, {}, {}, {}), lambda *line: None)
    finally:
        faults.install(None)
    assert spawned == 3
    await until(lambda: {child.pid for child in psutil.Process().children()} == before)
    await asyncio.sleep(0)


def test_a_rank_that_cannot_be_started_takes_back_those_before_it(tmp_path: Path) -> None:
    """W29: and leaves no descriptor."""
    before = len(os.listdir("/proc/self/fd"))
    _half(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


@in_loop
async def _short(tmp_path: Path, ranks: int) -> None:
    """With fewer and fewer descriptors to spare, until it fits."""
    placement = ThisMachine(ENVIRONMENT, None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in range(60):
        before = set(os.listdir("/proc/self/fd"))
        children = {child.pid for child in psutil.Process().children()}
        lowest = next(number for number in itertools.count() if str(number) not in before)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, hard))
        processes: Sequence[WorkerProcess] = []
        try:
            with contextlib.suppress(OSError):
                processes = await placement.launch(spec(tmp_path, *[{}] * ranks), lambda *line: None)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for process in processes:
            process.kill()
            await process.exited
            process.socket.close()
            process.close()
        await until(lambda children=children: {child.pid for child in psutil.Process().children()} == children)
        await turns()
        assert set(os.listdir("/proc/self/fd")) == before, f"with {spare} to spare"
        if processes:
            return
    raise AssertionError("60 descriptors are not enough")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.filterwarnings("error")
def test_whichever_descriptor_is_the_last_a_failed_start_leaves_nothing(tmp_path: Path, ranks: int) -> None:
    """W29."""
    _short(tmp_path, ranks)
