"""Workflows over fake workers: nothing lost, nothing left, back-pressure passed on (Y01 to Y05)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fakes import Behaviour, FakePlacement, FakeWorker, ManualClock, answers, call, echoes, in_loop, machinery, until

from torchd_archiver.packing import PackRequest, pack
from torchd_archiver.war import WorkflowPackRequest
from torchd_archiver.war import pack as pack_workflow
from torchd_protos.frames import Batch, Failure, Load, Loaded, Message, Unload
from torchd_server import errors
from torchd_server.inference import Inference
from torchd_server.management import Management
from torchd_server.metrics import Metrics
from torchd_server.registry import ModelRegistry
from torchd_server.settings import Limits, ModelSettings
from torchd_server.store import ModelStore
from torchd_server.workflow_store import WorkflowStore
from torchd_server.workflows import RegisterWorkflow, Workflows

SPEC = """\
models:
  retry-attempts: 0
  timeout-ms: 60000
  a: {url: m.mar}
  b: {url: m.mar}
dag:
  pre: [a, b]
  a: [join]
  b: [join]
"""
LINE = "dag:\n  first: [second]\n  second: [third]\n"


class Bench:
    """A workflow store with `w` (a join) and `line` (three functions), over fake workers."""

    def __init__(self, folder: Path, behaviour: Behaviour, limits: Limits) -> None:
        self.placement = FakePlacement(behaviour)
        self.registry = ModelRegistry()
        self.clock = ManualClock()
        self.scratch, store = folder / "scratch", folder / "store"
        self.scratch.mkdir()
        store.mkdir()
        (folder / "handler.py").write_text("def handle(data, context):\n    return data\n")
        pack(PackRequest("m", "1.0", str(folder / "handler.py"), export_path=store))
        for name, text in (("w", SPEC), ("line", LINE)):
            (folder / f"{name}.yaml").write_text(text)
            pack_workflow(WorkflowPackRequest(name, folder / f"{name}.yaml", folder / "handler.py", export_path=store))
        self.management = Management(
            self.registry,
            ModelStore(store, self.scratch),
            machinery(self.placement, self.clock),
            Metrics(),
            ModelSettings(),
            limits,
            True,
            lambda _: 1,
        )
        self.inference = Inference(self.registry, limits)
        self.workflows = Workflows(
            WorkflowStore(store, self.scratch),
            self.management,
            self.registry,
            self.inference,
            self.clock,
            limits,
            True,
        )

    def unfinished(self) -> int:
        return sum(model.unfinished for model in self.registry)


@asynccontextmanager
async def bench_in(folder: Path, behaviour: Behaviour = echoes) -> AsyncIterator[Bench]:
    bench = Bench(folder, behaviour, Limits(unload_grace=1.0))
    yield bench
    await bench.management.drain(0.0)
    await bench.management.stop()
    await bench.workflows.stop()
    assert (list(bench.scratch.iterdir()), bench.placement.alive) == ([], [])


def only(fails: str = "", hangs: str = "") -> Behaviour:
    """A worker that echoes, unless it serves the node that fails, or one of those that never answer."""

    async def behaviour(worker: FakeWorker) -> None:
        worker.hello()
        node = (await worker.hears(Load)).model.rpartition("__")[2]
        worker.say(Loaded())
        while True:
            match await worker.hears(Message):
                case Batch() as batch if node in fails.split():
                    [item] = batch.items
                    failure = Failure(item.request, "HandlerFailed", "told to", end_of_step=True)
                    worker.say(failure)
                case Batch() as batch if node not in hangs.split():
                    worker.say(*answers(batch))
                case Unload():
                    worker.exit(0)
                    return

    return behaviour


def test_of_thousands_of_calls_through_instant_nodes_none_is_lost(tmp_path: Path) -> None:
    """Y04: an answer may come before anybody waits for it."""

    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path) as bench:
            await bench.workflows.register(RegisterWorkflow("line.war"))
            for first in range(0, 3000, 50):
                bodies = [str(number).encode() for number in range(first, first + 50)]
                replies = await asyncio.gather(*(bench.workflows.predict(call(body, "line")) for body in bodies))
                assert [bytes(reply.body) for reply in replies] == bodies
            assert bench.unfinished() == 0

    main()


def test_a_full_queue_in_the_middle_is_passed_on_and_nothing_hangs(tmp_path: Path) -> None:
    """Y05: the caller is told to come again; nobody tries again for it."""

    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, only(hangs="second")) as bench:
            await bench.workflows.register(RegisterWorkflow("line.war"))
            second = bench.registry.get("line__second")
            calls: list[asyncio.Task[object]] = []

            def settled() -> bool:
                return second.unfinished + sum(call.done() for call in calls) == len(calls)

            for _ in range(4):  # in waves, so that the first node's own queue has room
                calls += [asyncio.ensure_future(bench.workflows.predict(call(model="line"))) for _ in range(50)]
                await until(settled)
            assert sum(call.done() for call in calls) == 200 - 101
            for refused in (call for call in calls if call.done()):
                error = refused.exception()
                assert isinstance(error, errors.NodeOverloaded)
                assert (error.node, error.retry_after_seconds) == ("second", 1.0)
            for waiting in calls:
                waiting.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert bench.unfinished() == 0

    main()


def test_a_failing_node_cancels_the_others_and_is_named(tmp_path: Path) -> None:
    """Y01."""

    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, only(fails="a", hangs="b")) as bench:
            await bench.workflows.register(RegisterWorkflow("w.war"))
            with pytest.raises(errors.NodeFailed, match="Error executing a of workflow 'w': told to"):
                await bench.workflows.predict(call(model="w"))
            assert bench.unfinished() == 0

    main()


def test_a_node_that_takes_too_long_is_a_timeout(tmp_path: Path) -> None:
    """Y01: by the time its specification gives it."""

    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, only(hangs="a b")) as bench:
            await bench.workflows.register(RegisterWorkflow("w.war"))
            running = asyncio.ensure_future(bench.workflows.predict(call(model="w")))
            await until(lambda: bench.registry.get("w__a").unfinished and bench.registry.get("w__b").unfinished)
            bench.clock.advance(60.0)
            with pytest.raises(errors.NodeTimeout):
                await running
            assert bench.unfinished() == 0

    main()


def test_a_client_that_leaves_cancels_all_nodes(tmp_path: Path) -> None:
    """Y02."""

    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, only(hangs="a b")) as bench:
            await bench.workflows.register(RegisterWorkflow("w.war"))
            running = asyncio.ensure_future(bench.workflows.predict(call(model="w")))
            await until(lambda: bench.registry.get("w__a").unfinished and bench.registry.get("w__b").unfinished)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert bench.unfinished() == 0

    main()


def test_two_registrations_of_one_name_at_once_leave_one(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path) as bench:
            register = RegisterWorkflow("w.war")
            found = await asyncio.gather(
                *(bench.workflows.register(register) for _ in range(3)), return_exceptions=True
            )
            assert sorted(type(answer).__name__ for answer in found) == ["WorkflowExists", "WorkflowExists", "str"]
            assert len(bench.registry.names()) == 4
            with pytest.raises(errors.NodeInUse):
                await bench.management.unregister("w__a", "")
            await bench.workflows.unregister("w")
            assert bench.registry.names() == []
            with pytest.raises(errors.WorkflowNotFound):
                await bench.workflows.unregister("w")
            assert await bench.workflows.register(register) == "w"

    main()


def test_while_the_server_drains_no_call_comes_in_and_those_inside_finish(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path) as bench:
            await bench.workflows.register(RegisterWorkflow("line.war"))
            running = asyncio.ensure_future(bench.workflows.predict(call(b"x", "line")))
            await asyncio.sleep(0)
            bench.inference.drain()
            with pytest.raises(errors.Draining):
                await bench.workflows.predict(call(model="line"))
            await bench.workflows.drain(5.0)
            await bench.management.drain(0.0)
            for change in (bench.workflows.register(RegisterWorkflow("w.war")), bench.workflows.unregister("line")):
                with pytest.raises(errors.Draining):
                    await change
            assert bytes((await running).body) == b"x"

    main()
