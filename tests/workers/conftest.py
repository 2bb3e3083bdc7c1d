"""A real worker process with the test at the daemon's end of its socket."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from torchd_protos.frames import (
    Batch,
    Call,
    Failure,
    FrameReader,
    Hello,
    Item,
    Load,
    Loaded,
    LoadFailed,
    Message,
    Part,
    Progress,
    Replies,
    Reply,
    Unload,
    encode,
)
from torchd_server.placement.common_page import CommonPage

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "models"
PACKAGES = os.pathsep.join(str(ROOT / folder) for folder in ("workers", "protos"))


class WorkerUnderTest:
    """The daemon's side: sends frames, waits for frames."""

    def __init__(
        self, directory: Path, rank: int = 0, more: Mapping[str, object] | None = None, fds: Sequence[int] = ()
    ) -> None:
        """`more` are options beside the usual ones; `fds` what they name."""
        self.directory = directory
        ours, theirs = socket.socketpair()
        self.socket = ours
        self.socket.settimeout(60)
        self._page = CommonPage()
        options = {"--fd": theirs.fileno(), "--page": self._page.fileno()}
        options |= {"--incarnation": 7, "--rank": rank, "--parent": os.getpid(), **(more or {})}
        arguments = [str(word) for pair in options.items() for word in pair]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "torchd_workers", *arguments],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": PACKAGES, "PYTHONDONTWRITEBYTECODE": "1"},
            pass_fds=[theirs.fileno(), self._page.fileno(), *fds],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        theirs.close()
        self._frames = FrameReader()
        self._waiting: list[Message] = []
        self.seen: list[Message] = []
        self._step = 0

    def send(self, message: Message) -> None:
        self.socket.sendall(b"".join(encode(message)))

    def next(self) -> Message:
        """The next frame; EOFError at the end of the stream."""
        while not self._waiting:
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError
            for message in self._frames.feed(data):
                if isinstance(message, Replies):  # its answers one by one, and itself
                    ends = [message.end_of_step and number == message.requests[-1] for number in message.requests]
                    told = zip(message.requests, ends, message.bodies, strict=True)
                    self._waiting += [Reply(number, end_of_step=end, body=body) for number, end, body in told]
                self._waiting.append(message)
        message = self._waiting.pop(0)
        self.seen.append(message)
        return message

    @property
    def begun(self) -> int:
        """The last batch it has begun."""
        return self._page.begun

    def until_begun(self, step: int = 0) -> None:
        """Returns when it has begun this batch, or else the last that was sent."""
        while self.begun < (step or self._step):
            time.sleep(0.001)  # nothing tells; the test's own time limit ends this

    def until(self, *kinds: type[Message]) -> Message:
        """The next frame of these kinds; what came before it is in `seen`."""
        while not isinstance(message := self.next(), kinds):
            pass
        return message

    def load(self, handler: str = "handler.py", **fields: object) -> Message:
        """Says Load and gives what comes back."""
        self.begin_load(handler, **fields)
        return self.until_loaded()

    def begin_load(self, handler: str = "handler.py", **fields: object) -> None:
        """Says Load."""
        self.until(Hello)
        defaults = {"model": "m", "version": "1.0", "directory": str(self.directory), "max_response_bytes": 0}
        manifest = {"model": {"modelName": "m", "handler": handler}}
        self.send(Load(handler=handler, **{**defaults, "manifest_json": json.dumps(manifest), **fields}))

    def until_loaded(self) -> Message:
        """How the load ended."""
        first = self.until(Progress, LoadFailed)
        return first if isinstance(first, LoadFailed) else self.until(Loaded, LoadFailed)

    def send_batch(self, *bodies: bytes, first: int = 1, remaining_ms: int = 60_000) -> int:
        """Sends one batch, its requests numbered from `first`; gives its step."""
        self._step += 1
        calls = [Call(request_id=f"r{first + n}", parts=[Part("body", body=body)]) for n, body in enumerate(bodies)]
        self.send(Batch(self._step, [Item(first + n, remaining_ms, call) for n, call in enumerate(calls)]))
        return self._step

    def run(self, *bodies: bytes, first: int = 1) -> list[Reply | Failure]:
        """Runs one batch and gives its last answers, in the order they came."""
        step = self.send_batch(*bodies, first=first)
        answers = self.answers()
        assert self.begun == step
        return answers

    def answers(self) -> list[Reply | Failure]:
        """The last answers of the running batch, in the order of their numbers."""
        answers: list[Reply | Failure] = []
        while not isinstance(answer := self.until(Replies, Reply, Failure), Replies):
            if isinstance(answer, Failure) or not answer.more:
                answers.append(answer)
        assert answer.end_of_step
        return sorted(answers, key=lambda answer: answer.request)

    def ask(self, body: bytes) -> Reply | Failure:
        """Runs a batch of one."""
        (answer,) = self.run(body)
        return answer

    def end(self) -> tuple[int, str, str]:
        """Waits for the process to end by itself: its status, stdout and stderr."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out.decode(errors="replace"), err.decode(errors="replace")

    def close(self) -> None:
        self.socket.close()
        self._page.close()
        self.process.kill()
        self.process.communicate()


class GroupUnderTest:
    """The ranks of one worker, started as the daemon starts them."""

    def __init__(self, directory: Path, size: int) -> None:
        pairs = [socket.socketpair() for _ in range(size - 1)]
        fds = [ours.fileno() for ours, _ in pairs]
        self.leader = WorkerUnderTest(directory, 0, {"--peers": ",".join(map(str, fds))}, fds)
        self.followers = [
            WorkerUnderTest(directory, rank, {"--leader": theirs.fileno()}, [theirs.fileno()])
            for rank, (_, theirs) in enumerate(pairs, 1)
        ]
        for end in itertools.chain(*pairs):
            end.close()
        self.ranks = [self.leader, *self.followers]

    def begin_load(self, parallel: str = "tp", **fields: object) -> None:
        """Says Load to every rank."""
        for rank in self.ranks:
            rank.begin_load(ranks=len(self.ranks), parallel=parallel, **fields)

    def unload(self) -> None:
        """Its orderly end. The leader is told last: when it leaves, so do the others."""
        for rank in reversed(self.ranks):
            rank.send(Unload())
        assert [rank.end()[::2] for rank in self.ranks] == [(0, "")] * len(self.ranks)


@pytest.fixture
def start() -> Iterator[Callable[[Path | str], WorkerUnderTest]]:
    """Starts workers: for a folder of tests/models by name, or for any directory."""
    workers: list[WorkerUnderTest] = []

    def start_one(directory: Path | str) -> WorkerUnderTest:
        workers.append(WorkerUnderTest(MODELS / directory))
        return workers[-1]

    yield start_one
    for worker in workers:
        worker.close()


@pytest.fixture
def loaded(start: Callable[[Path | str], WorkerUnderTest]) -> Callable[..., WorkerUnderTest]:
    """Starts a worker and loads its model."""

    def load_one(directory: Path | str, **fields: object) -> WorkerUnderTest:
        worker = start(directory)
        assert worker.load(**fields) == Loaded()
        return worker

    return load_one


@pytest.fixture
def start_group() -> Iterator[Callable[..., GroupUnderTest]]:
    """Starts groups of ranks in any directory, without loading their model."""
    groups: list[GroupUnderTest] = []

    def start_one(directory: Path, size: int = 2) -> GroupUnderTest:
        groups.append(GroupUnderTest(directory, size))
        return groups[-1]

    yield start_one
    for rank in itertools.chain(*(group.ranks for group in groups)):
        rank.close()


@pytest.fixture
def grouped(start_group: Callable[..., GroupUnderTest], tmp_path: Path) -> Callable[..., GroupUnderTest]:
    """Starts a group whose handler is this source, and loads every rank."""

    def load_one(source: str, size: int = 2, **fields: object) -> GroupUnderTest:
        (tmp_path / "handler.py").write_text(source)
        group = start_group(tmp_path, size)
        group.begin_load(**fields)
        assert [rank.until_loaded() for rank in group.ranks] == [Loaded()] * size
        return group

    return load_one


@pytest.fixture
def start_with() -> Iterator[Callable[..., WorkerUnderTest]]:
    """Starts workers with options beside the usual ones."""
    workers: list[WorkerUnderTest] = []

    def start_one(directory: Path, options: Mapping[str, object]) -> WorkerUnderTest:
        workers.append(WorkerUnderTest(directory, 0, options))
        return workers[-1]

    yield start_one
    for worker in workers:
        worker.close()
