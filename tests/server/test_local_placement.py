"""Workers as real processes: what they inherit, how they end, what is left of them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from fakes import in_loop, until

from torchd_protos.frames import PROTOCOL_VERSION, FrameReader, Hello, Load, LoadFailed, Message, encode
from torchd_server.placement.base import Exit, WorkerSpec
from torchd_server.placement.local import LINE_BYTES, LocalPlacement, LocalProcess

ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PATH": "/usr/bin:/bin", "SECRET": "x"}


def spec(folder: Path, **environment: str) -> WorkerSpec:
    return WorkerSpec("m/1.0", 7, folder, environment)


@asynccontextmanager
async def launched(
    folder: Path, lines: list[tuple[str, str]] | None = None, **environment: str
) -> AsyncIterator[LocalProcess]:
    """A worker process that is gone afterwards."""
    placement = LocalPlacement(ENVIRONMENT, r"PATH|PYTHONPATH")
    written = lines if lines is not None else []
    (process,) = await placement.launch(
        spec(folder, **environment), lambda rank, stream, line: written.append((stream, line))
    )
    try:
        yield process
    finally:
        process.kill()
        await process.exited
        process.socket.close()
        await asyncio.sleep(0)
        process.close()


async def hears(process: LocalProcess, kind: type[Message]) -> Message:
    reader = FrameReader()
    while True:
        data = await asyncio.get_running_loop().sock_recv(process.socket, 65536)
        assert data, "the worker has gone"
        for message in reader.feed(data):
            if isinstance(message, kind):
                return message


@in_loop
async def _says_hello(tmp_path: Path) -> None:
    async with launched(tmp_path) as process:
        assert await hears(process, Hello) == Hello(PROTOCOL_VERSION, 7, 0, process.pid)
        living = psutil.Process(process.pid)
        assert os.getsid(process.pid) == process.pid
        assert living.cwd() == os.path.realpath(tmp_path)  # noqa: ASYNC240
        assert living.ppid() == os.getpid()


def test_a_worker_runs_in_its_folder_and_a_session_of_its_own(tmp_path: Path) -> None:
    _says_hello(tmp_path)


@in_loop
async def _environment(tmp_path: Path) -> None:
    async with launched(tmp_path, OMP_NUM_THREADS="3") as process:
        await hears(process, Hello)
        environment = psutil.Process(process.pid).environ()
    assert "SECRET" not in environment
    assert environment["OMP_NUM_THREADS"] == "3"


def test_a_worker_sees_the_allowed_environment_only(tmp_path: Path) -> None:
    """S43."""
    _environment(tmp_path)


@in_loop
async def _kill(tmp_path: Path) -> None:
    async with launched(tmp_path) as process:
        await hears(process, Hello)
        process.kill()
        assert await process.exited == Exit(-signal.SIGKILL)
        assert not psutil.pid_exists(process.pid)
        process.kill()
        process.dump_stacks()


def test_killing_reaps_and_may_be_said_twice(tmp_path: Path) -> None:
    """W28: a dead worker's number is never signalled again."""
    _kill(tmp_path)


@in_loop
async def _stacks(tmp_path: Path) -> None:
    lines: list[tuple[str, str]] = []
    async with launched(tmp_path, lines) as process:
        await hears(process, Hello)
        process.dump_stacks()
        await until(lambda: any("most recent call first" in line for _, line in lines))
        assert not process.exited.done()


def test_a_worker_tells_its_stacks_when_asked(tmp_path: Path) -> None:
    """W05, P26."""
    _stacks(tmp_path)


@in_loop
async def _load_failure(tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text("print('x' * 20000)\nprint('two\\nlines\\xe9')\nimport no_such_module\n")
    lines: list[tuple[str, str]] = []
    async with launched(tmp_path, lines) as process:
        await hears(process, Hello)
        load = Load(model="m", version="1.0", directory=str(tmp_path), handler="handler.py", manifest_json="{}")
        process.socket.send(b"".join(bytes(buffer) for buffer in encode(load)))
        failure = await hears(process, LoadFailed)
        assert isinstance(failure, LoadFailed)
        assert "no_such_module" in failure.message
        assert (await process.exited).code == 1
        await until(lambda: ("stdout", "lines\xe9") in lines)
    assert ("stdout", "two") in lines
    assert all(len(line.encode()) <= LINE_BYTES for _, line in lines)


def test_what_a_worker_prints_arrives_in_bounded_lines(tmp_path: Path) -> None:
    """S39, TS9: and is never taken for anything but text."""
    _load_failure(tmp_path)


@in_loop
async def _missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await LocalPlacement(ENVIRONMENT, None).launch(spec(tmp_path / "gone"), lambda rank, stream, line: None)


def test_a_process_that_cannot_start_leaves_no_descriptor(tmp_path: Path) -> None:
    """W29."""
    before = len(os.listdir("/proc/self/fd"))
    _missing_folder(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_worker_leaves_with_the_end_of_its_socket(tmp_path: Path) -> None:
    """P15."""

    @in_loop
    async def main() -> None:
        async with launched(tmp_path) as process:
            await hears(process, Hello)
            process.socket.close()
            await process.exited

    main()


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "exited with status 0"), (3, "exited with status 3"), (-9, "killed by SIGKILL"), (-99, "killed by signal 99")],
)  # fmt: skip
def test_an_exit_is_told_in_words(code: int, words: str) -> None:
    assert words in str(Exit(code))
