"""What once broke the core and must not again: restarts, requests handed back, registrations, metrics, memory."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import (
    Behaviour,
    FakePlacement,
    FakeWorker,
    ManualClock,
    call,
    echoes,
    fails_to_load,
    in_loop,
    loads,
    machinery,
    until,
)

from torchd_archiver.packing import PackRequest, pack
from torchd_protos.frames import Batch, Load
from torchd_server import errors, pool
from torchd_server.management import Management, RegisterModel
from torchd_server.metrics import Metrics
from torchd_server.model import ModelState, ModelVersion
from torchd_server.registry import ModelRegistry
from torchd_server.settings import Limits, ModelSettings
from torchd_server.store import ModelStore, UnpackedModel
from torchd_server.surfaces.rest.http1_reader import HttpLimits, RequestReader

MEBIBYTE = 1024 * 1024


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BACK_OFF_FIRST_SECONDS", 0.0)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Whatever goes now goes because nobody holds it, and not because the collector came by."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Bench:
    """One model version over fake processes, and the states it went through."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.placement = FakePlacement(*behaviours)
        self.states: set[ModelState] = set()
        unpacked = UnpackedModel("m.mar", Path("/nowhere"), "m", "1.0", "handler.py", "python", {}, "{}", "{}", True)
        self.model = ModelVersion(
            "m",
            "1.0",
            unpacked,
            ModelSettings(),
            machinery(self.placement, ManualClock()),
            Metrics().of_model("m", "1.0"),
            self._changed,
        )

    def _changed(self) -> None:
        self.states.add(self.model.state)

    async def end(self) -> None:
        await self.model.drain(0.0)
        await self.model.stop(1.0)
        assert self.placement.alive == []


async def loads_then_is_killed(worker: FakeWorker) -> None:
    """Ready, idle, and gone."""
    await loads(worker)
    await until(lambda: worker.told(Load))
    worker.exit(-9)


async def dies_with_a_batch(worker: FakeWorker) -> None:
    """Takes a batch and dies before it begins it."""
    await loads(worker)
    await worker.hears(Batch)
    worker.exit(-11)


@in_loop
async def test_workers_that_were_ready_never_cost_the_model() -> None:
    """Killed while they were idle, one after the other: each was a worker that could serve."""
    bench = Bench(*[loads_then_is_killed] * 12, echoes)
    bench.model.scale(1, 1)
    await until(lambda: len(bench.placement.launched) == 13 and bench.model.ready_workers)
    assert ModelState.FAILED not in bench.states
    request = bench.model.submit(call(b"still here"))
    assert [bytes(reply.body) for reply in await request.answer()] == [b"still here"]
    await bench.end()


@in_loop
async def test_only_deaths_before_ready_are_counted_and_a_ready_worker_ends_the_count() -> None:
    """W13: five in a row."""
    row = pool.FAILURES_BEFORE_GIVING_UP
    almost = [fails_to_load] * (row - 1)
    bench = Bench(*almost, loads_then_is_killed, *almost, loads_then_is_killed, fails_to_load)
    bench.model.scale(1, 1)
    await until(lambda: bench.model.state is ModelState.FAILED)
    assert len(bench.placement.launched) == 2 * row + row
    await bench.end()


@in_loop
async def test_a_request_that_two_workers_died_of_is_answered_and_not_tried_for_ever() -> None:
    bench = Bench(dies_with_a_batch)
    bench.model.scale(1, 1)
    request = bench.model.submit(call(b"poison"))
    with pytest.raises(errors.WorkerDied):
        await request.answer()
    assert sum(bool(worker.told(Batch)) for worker in bench.placement.launched) == 2
    bench.placement.behave(echoes)
    following = bench.model.submit(call(b"fine"))
    assert [bytes(reply.body) for reply in await following.answer()] == [b"fine"]
    await bench.end()


def test_a_closed_reader_holds_nothing_and_is_held_by_nothing(no_collector: None) -> None:
    """The parser calls the reader that owns it: a circle, which the collector may leave alone for minutes."""
    tracemalloc.start()
    reader = RequestReader(HttpLimits(body_bytes=16 * MEBIBYTE))
    reader.feed(b"POST /predictions/m HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (9 * MEBIBYTE))
    for _ in range(8):
        reader.feed(b"x" * MEBIBYTE)
    held, _ = tracemalloc.get_traced_memory()
    reader.close()
    left, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held - left >= 8 * MEBIBYTE
    reader.feed(b"more that was on its way")
    assert reader.take() is None
    gone = weakref.ref(reader)
    del reader
    assert gone() is None


@in_loop
async def test_metrics_keep_nothing_of_models_that_are_gone(no_collector: None) -> None:
    """Names are the clients' to choose: whatever is kept of each grows without end."""
    metrics = Metrics()
    of_none = metrics.text().count(b"\n")
    gone = []
    for number in range(200):
        of_model = metrics.of_model(f"m{number}", "1.0")
        of_model.outcome("ok")
        of_model.worker_states(["ready"])
        of_model.forget()
        gone.append(weakref.ref(of_model))
        del of_model
    assert [ref for ref in gone if ref() is not None] == []
    assert metrics.text().count(b"\n") == of_none


class Office:
    """Management with one archive in its store."""

    def __init__(self, folder: Path, *behaviours: Behaviour) -> None:
        self.placement = FakePlacement(*behaviours)
        self.registry = ModelRegistry()
        self.metrics = Metrics()
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        (folder / "store").mkdir()
        (folder / "handler.py").write_text("def handle(data, context):\n    return data\n")
        pack(PackRequest("m", "1.0", str(folder / "handler.py"), export_path=folder / "store"))
        self.management = Management(
            self.registry,
            ModelStore(folder / "store", self.scratch),
            machinery(self.placement, ManualClock()),
            self.metrics,
            ModelSettings(),
            Limits(unload_grace=1.0),
            True,
            lambda _: 1,
        )

    async def register(self) -> Any:
        return await self.management.register(RegisterModel("m.mar", initial_workers=1))

    async def end(self) -> None:
        await self.management.drain(0.0)
        await self.management.stop()
        assert (list(self.scratch.iterdir()), self.placement.alive) == ([], [])


def test_a_refused_twin_leaves_the_living_models_metrics_alone(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
        office = Office(tmp_path, echoes)
        await office.register()
        with pytest.raises(errors.ModelExists):
            await office.register()
        await office.management.scale("m", "", 3, None, True)
        assert b'torchd_workers{model="m",state="ready",version="1.0"} 3.0' in office.metrics.text()
        await office.management.unregister("m", "")
        assert b'model="m"' not in office.metrics.text()
        await office.end()

    main()


def test_a_register_call_whose_model_is_taken_away_meanwhile_fails(tmp_path: Path) -> None:
    """It waits for workers that nobody wants any more."""

    async def loads_for_ever(worker: FakeWorker) -> None:
        worker.hello()
        await worker.hears(Load)

    @in_loop
    async def main() -> None:
        office = Office(tmp_path, loads_for_ever)
        registering = asyncio.create_task(office.register())
        await until(lambda: office.placement.launched and office.placement.launched[0].told(Load))
        await office.management.unregister("m", "")
        with pytest.raises(errors.TorchdError):
            await registering
        await office.end()

    main()


@pytest.mark.parametrize("value", ["!!bool foo", "!!int ''", "!!timestamp foo", "!!float bar", "!!binary '\u00e9'"])
def test_yaml_whose_values_are_not_what_they_say_is_a_bad_archive(tmp_path: Path, value: str) -> None:
    """PyYAML's constructors raise what comes: KeyError, IndexError, AttributeError."""
    store, scratch = tmp_path / "store", tmp_path / "scratch"
    store.mkdir()
    scratch.mkdir()
    manifest = {"modelName": "m", "modelVersion": "1.0", "handler": "h.py", "configFile": "model-config.yaml"}
    with zipfile.ZipFile(store / "bad.mar", "w") as archive:
        archive.writestr("h.py", "def handle(data, context):\n    return data\n")
        archive.writestr("model-config.yaml", f"minWorkers: 1\nhandler:\n  given: {value}\n".encode())
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": manifest}))
    with pytest.raises(errors.ArchiveInvalid, match=r"model-config\.yaml"):
        asyncio.run(ModelStore(store, scratch).fetch("bad.mar"))
    assert list(scratch.iterdir()) == []
