"""The far side, for tests: a clock moved by hand, a worker that speaks frames over a real socketpair, its placement.

A fake worker is told what to do by a behaviour, an ordinary coroutine: `echoes`, `fails_to_load` or the test's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import heapq
import itertools
import socket
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, ParamSpec, TypeVar

from torchd_protos.frames import (
    PROTOCOL_VERSION,
    Batch,
    Call,
    FrameLimits,
    FrameReader,
    Hello,
    Item,
    Load,
    Loaded,
    LoadFailed,
    Message,
    Part,
    Reply,
    Settings,
    Unload,
    encode,
)
from torchd_server.accelerators.cpu import ThreadBudget
from torchd_server.accelerators.ledger import DeviceLedger
from torchd_server.clock import Clock
from torchd_server.model import Machinery
from torchd_server.placement.base import Exit, Output, Placement, WorkerSpec
from torchd_server.settings import ModelSettings
from torchd_server.worker import WorkerPlan

GUARD_SECONDS = 30.0
P = ParamSpec("P")
M = TypeVar("M", bound=Message)
_pids = itertools.count(2**22 + 1)  # past the highest number Linux gives to a process


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs an async test on a loop of its own; an exception nobody saw, or a task left behind, fails it."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        escaped: list[dict[str, Any]] = []
        left: list[str] = []

        async def main() -> None:
            await asyncio.wait_for(test(*args, **kwargs), GUARD_SECONDS)
            await turns()
            left.extend(repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task())

        with asyncio.Runner() as runner:
            runner.get_loop().set_exception_handler(lambda _, context: escaped.append(context))
            runner.run(main())
            gc.collect()
        assert escaped == []
        assert left == []

    return run


async def turns(number: int = 10) -> None:
    """Lets everything that is ready run, a few rounds of it."""
    for _ in range(number):
        await asyncio.sleep(0)


async def until(fact: Callable[[], object]) -> None:
    """Returns once `fact` is true; the test's own guard ends it otherwise."""
    while not fact():  # noqa: ASYNC110 - facts of plain objects have no event
        await asyncio.sleep(0.001)


class ManualTimer:
    """A call at a time, until it is taken back."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """Takes the call back."""
        self.callback = None


class ManualClock:
    """A clock that stands still until it is advanced."""

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._order = itertools.count()
        self._timers: list[tuple[float, int, ManualTimer]] = []

    def time(self) -> float:
        """Now."""
        return self._now

    def call_at(self, when: float, callback: Callable[[], object]) -> ManualTimer:
        """Calls back once the time is advanced to `when`."""
        timer = ManualTimer(callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    @property
    def next_call(self) -> float | None:
        """When the next callback is due; None without one."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def advance(self, seconds: float) -> None:
        """Lets time pass; every callback due on the way runs at its own time."""
        self.advance_to(self._now + seconds)

    def advance_to(self, end: float) -> None:
        """Lets time pass until `end`."""
        while (due := self.next_call) is not None and due <= end:
            _, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, due)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
        self._now = max(self._now, end)


Behaviour = Callable[["FakeWorker"], Awaitable[None]]


class FakeWorker(asyncio.Protocol):
    """A worker process and the program in it: the daemon holds it as a process, the test makes it speak."""

    def __init__(self, spec: WorkerSpec, rank: int, output: Callable[[str, str], None], ours: socket.socket) -> None:
        self.spec = spec
        self.rank = rank
        self.output = output
        self.pid = next(_pids)
        self.socket = ours
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.begun = 0
        self.stack_dumps = 0
        self.was_killed = False
        self.was_closed = False
        # A process in uninterruptible sleep: SIGKILL does nothing to it.
        self.is_immortal = False
        self.heard: list[Message] = []
        self._news = asyncio.Event()
        self._taken = 0
        self._reader = FrameReader(FrameLimits())
        self._transport: asyncio.WriteTransport | None = None
        self._program: asyncio.Task[None] | None = None

    # What the daemon asks of the process.

    def kill(self) -> None:
        """SIGKILL."""
        self.was_killed = True
        if not self.is_immortal:
            self.exit(-9)

    def dump_stacks(self) -> None:
        """SIGUSR2."""
        self.stack_dumps += 1

    def close(self) -> None:
        """Its pipes are given back."""
        self.was_closed = True

    # What the test makes it do.

    def begin(self, step: int) -> None:
        """It says in the common page that it has begun this batch."""
        self.begun = step

    def run(self, behaviour: Behaviour) -> None:
        """Runs its program, unless it was killed before."""
        if self.exited.done():
            return
        self._program = asyncio.get_running_loop().create_task(self._run(behaviour))

    async def _run(self, behaviour: Behaviour) -> None:
        with contextlib.suppress(ConnectionError):
            await behaviour(self)

    def exit(self, code: int) -> None:
        """The process ends: its socket closes, whoever waits for it is told."""
        if self._transport is not None:
            self._transport.close()
        if self._program is not None and self._program is not asyncio.current_task():
            self._program.cancel()
        if not self.exited.done():
            self.exited.set_result(Exit(code))

    def say(self, *messages: Message) -> None:
        """Writes messages."""
        self.say_bytes(b"".join(bytes(buffer) for message in messages for buffer in encode(message)))

    def say_bytes(self, data: bytes) -> None:
        """Writes anything."""
        assert self._transport is not None
        self._transport.write(data)

    def hello(self) -> None:
        """Says who it is."""
        self.say(Hello(PROTOCOL_VERSION, self.spec.incarnation, self.rank, self.pid))

    async def hears(self, kind: type[M]) -> M:
        """The next message of this kind; those before it are passed over, `heard` keeps them all."""
        while True:
            while self._taken < len(self.heard):
                message = self.heard[self._taken]
                self._taken += 1
                if isinstance(message, kind):
                    return message
            await self._hears_more()

    async def _hears_more(self) -> None:
        self._news.clear()
        await self._news.wait()
        if self._transport is None or (self._transport.is_closing() and self._taken == len(self.heard)):
            raise ConnectionResetError("the daemon closed the socket")

    def told(self, kind: type[M]) -> list[M]:
        """Every message of this kind so far."""
        return [message for message in self.heard if isinstance(message, kind)]

    # asyncio's side of its socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.heard.extend(self._reader.feed(data))
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._news.set()


async def loads(worker: FakeWorker) -> Load:
    """Says hello and loads whatever it is told to."""
    worker.hello()
    load = await worker.hears(Load)
    worker.say(Loaded())
    return load


async def echoes(worker: FakeWorker) -> None:
    """A good worker: answers each request with its own body, until it is unloaded."""
    await loads(worker)
    while True:
        match await worker.hears(Message):
            case Batch() as batch:
                worker.begin(batch.step)
                worker.say(*answers(batch))
            case Unload():
                worker.exit(0)
                return
            case Settings() | _:
                pass


async def fails_to_load(worker: FakeWorker) -> None:
    """Cannot load, says why, leaves."""
    worker.hello()
    await worker.hears(Load)
    worker.say(LoadFailed("LoadFailed", "ImportError: no foo (handler.py:3)", 'File "handler.py", line 3'))
    worker.exit(1)


async def loads_only(worker: FakeWorker) -> None:
    """Loads; what it does afterwards is up to the test."""
    await loads(worker)


def answers(batch: Batch) -> list[Reply]:
    """One reply to each request of a batch, with its own body."""
    last = len(batch.items) - 1
    return [
        Reply(item.request, body=body_of(item), end_of_step=number == last) for number, item in enumerate(batch.items)
    ]


def body_of(item: Item) -> bytes:
    """The body of a request's first part."""
    return bytes(item.call.parts[0].body) if item.call.parts else b""


class FakePlacement:
    """Starts fake workers; the behaviours are used up one by one, rank by rank, the last one stays."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.launched: list[FakeWorker] = []
        self._behaviours = list(behaviours) or [echoes]

    async def launch(self, spec: WorkerSpec, output: Output) -> list[FakeWorker]:
        """Starts one, or as many as it has ranks; all or none."""
        try:
            return [await self._begin(spec, rank, partial(output, rank)) for rank in range(len(spec.ranks))]
        except asyncio.CancelledError:
            for worker in (each for each in self.launched if each.spec is spec):
                worker.kill()
                worker.socket.close()
            raise

    async def _begin(self, spec: WorkerSpec, rank: int, output: Callable[[str, str], None]) -> FakeWorker:
        behaviour = self._behaviours.pop(0) if len(self._behaviours) > 1 else self._behaviours[0]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        theirs.setblocking(False)
        worker = FakeWorker(spec, rank, output, ours)
        self.launched.append(worker)
        await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=theirs)
        worker.run(behaviour)
        return worker

    @property
    def alive(self) -> list[FakeWorker]:
        """Those that have not ended."""
        return [worker for worker in self.launched if not worker.exited.done()]

    def behave(self, *behaviours: Behaviour) -> None:
        """What the workers started from now on do."""
        self._behaviours = list(behaviours)


def machinery(
    placement: Placement,
    clock: Clock,
    *,
    threads: ThreadBudget | None = None,
    unload_grace: float = 5.0,
    devices: DeviceLedger | None = None,
) -> Machinery:
    """What a model version is built from, with a placement and a clock of the test's choice."""
    return Machinery(
        placement=placement,
        threads=threads or ThreadBudget(4),
        devices=devices or DeviceLedger(),
        clock=clock,
        load=Load(),
        plan=plan,
        unload_grace_seconds=unload_grace,
    )


def plan(spec: WorkerSpec, load: Load, settings: ModelSettings) -> WorkerPlan:
    """As the daemon plans a worker."""
    return WorkerPlan(
        spec, load, settings.startup_timeout, settings.response_timeout, settings.worker_threads, FrameLimits()
    )


def call(body: bytes = b"hello", model: str = "m", **fields: Any) -> Call:
    """A call with one part."""
    return Call(model=model, parts=[Part("body", "", body)], **fields)
