"""One model version as a whole: what it accepts, what it refuses, how it drains, over fake workers."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from fakes import (
    Behaviour,
    FakePlacement,
    FakeWorker,
    ManualClock,
    answers,
    call,
    echoes,
    fails_to_load,
    in_loop,
    loads,
    loads_only,
    machinery,
    turns,
    until,
)

from torchd_protos.frames import Batch, Load, Metric, Unload
from torchd_server import errors, pool
from torchd_server.metrics import Metrics, NoSink
from torchd_server.model import ModelState, ModelVersion
from torchd_server.request import Request, State
from torchd_server.settings import ModelSettings
from torchd_server.store import UnpackedModel
from torchd_server.torchserve import metrics_config
from torchd_server.torchserve.recorder import Recorder


class Bench:
    """A model version over fake processes."""

    def __init__(self, *behaviours: Behaviour, **settings: Any) -> None:
        self.clock = ManualClock()
        self.placement = FakePlacement(*behaviours)
        self.metrics = Metrics()
        config = {"a": 1}
        files = (config, json.dumps(config), "{}")
        unpacked = UnpackedModel("m.mar", Path("/nowhere"), "m", "1.0", "handler.py", "python", *files, True)
        self.changes = 0
        self.model = ModelVersion(
            "m",
            "1.0",
            unpacked,
            ModelSettings(**settings),
            machinery(self.placement, self.clock),
            self.metrics.of_model("m", "1.0"),
            self._changed,
        )

    def _changed(self) -> None:
        self.changes += 1

    async def scaled(self, workers: int) -> None:
        self.model.scale(workers, workers)
        assert await self.model.settle() is None

    async def end(self) -> None:
        await self.model.drain(0.0)
        await self.model.stop(1.0)
        assert self.placement.alive == []


async def body(request: Request) -> bytes:
    return bytes((await request.answer())[0].body)


@in_loop
async def test_a_worker_is_told_everything_about_its_model() -> None:
    bench = Bench(echoes, batch_size=3)
    await bench.scaled(1)
    (load,) = bench.placement.launched[0].told(Load)
    assert (load.model, load.version, load.handler, load.batch_size) == ("m", "1.0", "handler.py", 3)
    assert (load.device_type, load.gpu_id, load.config_json, load.manifest_json) == ("cpu", None, '{"a": 1}', "{}")
    await bench.end()


@in_loop
async def test_requests_are_answered_in_their_order() -> None:
    bench = Bench(echoes)
    await bench.scaled(1)
    requests = [bench.model.submit(call(b"%d" % number)) for number in range(5)]
    assert bench.model.unfinished == 5
    assert [await body(request) for request in requests] == [b"0", b"1", b"2", b"3", b"4"]
    assert bench.model.unfinished == 0
    await bench.end()


@in_loop
async def test_a_model_that_wants_no_worker_refuses_at_once() -> None:
    bench = Bench(echoes)
    assert bench.model.state is ModelState.IDLE
    with pytest.raises(errors.NoWorker, match="scale it"):
        bench.model.submit(call())
    await bench.end()


@in_loop
async def test_requests_wait_for_a_model_that_is_loading() -> None:
    bench = Bench(echoes)
    bench.model.scale(1, 1)
    assert bench.model.state is ModelState.LOADING
    request = bench.model.submit(call(b"early"))
    assert await body(request) == b"early"
    assert bench.model.state is ModelState.READY
    await bench.end()


@in_loop
async def test_a_full_queue_refuses_at_its_limit_and_not_before() -> None:
    """P07, P08: running requests do not count."""
    bench = Bench(loads_only, job_queue_size=2)
    await bench.scaled(1)
    for _ in range(3):
        bench.model.submit(call())
    with pytest.raises(errors.QueueFull, match="limit is 2 waiting requests") as refused:
        bench.model.submit(call())
    assert refused.value.retry_after_seconds
    assert (bench.model.describe(True).pending, bench.model.describe(True).remaining) == (2, 0)
    assert 'outcome="QueueFull"' in bench.metrics.text().decode()
    await bench.end()


@in_loop
async def test_a_model_that_only_fails_answers_everybody_with_the_cause() -> None:
    """W13: queued ones at the moment it is given up, new ones at once, until it is scaled."""
    bench = Bench(fails_to_load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "BACK_OFF_FIRST_SECONDS", 0.001)
        bench.model.scale(1, 1)
        waiting = bench.model.submit(call())
        with pytest.raises(errors.ModelFailed, match="no foo"):
            await waiting.answer()
    assert bench.model.state is ModelState.FAILED
    with pytest.raises(errors.ModelFailed, match="no foo"):
        bench.model.submit(call())
    failure = bench.model.describe(True).last_failure
    assert failure is not None
    assert "handler.py" in getattr(failure.error, "traceback", "")
    bench.placement.behave(echoes)
    await bench.scaled(1)
    assert await body(bench.model.submit(call(b"again"))) == b"again"
    await bench.end()


@in_loop
async def test_queued_requests_outlive_the_worker_they_waited_for() -> None:
    """W01: only what the dead worker ran is lost."""
    bench = Bench(loads_only, echoes)
    await bench.scaled(1)
    lost, kept = bench.model.submit(call(b"1")), bench.model.submit(call(b"2"))
    process = bench.placement.launched[0]
    process.begin((await process.hears(Batch)).step)
    await turns()
    process.exit(-9)
    with pytest.raises(errors.WorkerDied, match="SIGKILL"):
        await lost.answer()
    assert await body(kept) == b"2"
    await bench.end()


async def answers_one_then_waits(worker: FakeWorker) -> None:
    """Loads, answers nothing by itself; leaves when it is unloaded."""
    await loads(worker)
    await worker.hears(Unload)
    worker.exit(0)


@in_loop
async def test_draining_answers_what_was_accepted_and_refuses_the_rest() -> None:
    """M03, D01."""
    bench = Bench(answers_one_then_waits)
    await bench.scaled(1)
    process = bench.placement.launched[0]
    running, queued = bench.model.submit(call(b"1")), bench.model.submit(call(b"2"))
    draining = asyncio.ensure_future(bench.model.drain(20.0))
    await turns()
    assert bench.model.state is ModelState.DRAINING
    with pytest.raises(errors.Draining):
        bench.model.submit(call())
    for _ in range(2):
        await until(lambda: process.told(Batch))
        batch = process.told(Batch)[-1]
        process.say(*answers(batch))
        await until(lambda batch=batch: process.told(Batch)[-1] is not batch or not bench.model.unfinished)  # type: ignore[misc]
    await draining
    assert (await body(running), await body(queued)) == (b"1", b"2")
    await bench.model.stop(1.0)
    assert not process.was_killed


@in_loop
async def test_what_is_not_answered_by_the_grace_limit_gets_a_typed_error() -> None:
    """P14."""
    bench = Bench(loads_only)
    await bench.scaled(1)
    requests = [bench.model.submit(call()) for _ in range(3)]
    await bench.model.drain(0.01)
    for request in requests:
        with pytest.raises(errors.Draining):
            await request.answer()
    await bench.end()


@in_loop
async def test_scaling_to_nothing_answers_the_queue_and_lets_the_batch_finish() -> None:
    """M04, TS18."""
    bench = Bench(answers_one_then_waits)
    await bench.scaled(1)
    process = bench.placement.launched[0]
    running, queued = bench.model.submit(call(b"1")), bench.model.submit(call(b"2"))
    await until(lambda: process.told(Batch))
    batch = process.told(Batch)[0]
    bench.model.scale(0, 0)
    with pytest.raises(errors.NoWorker):
        await queued.answer()
    process.say(*answers(batch))
    assert await body(running) == b"1"
    await until(process.exited.done)
    assert not process.was_killed
    await bench.end()


@in_loop
async def test_a_batch_the_last_worker_hands_back_is_answered() -> None:
    """TS18: nobody is left to take it, and nobody will come."""
    bench = Bench(loads_only)
    await bench.scaled(1)
    process = bench.placement.launched[0]
    request = bench.model.submit(call())
    await process.hears(Batch)
    bench.model.scale(0, 0)
    await turns()
    process.exit(-9)
    await until(lambda: not bench.model._pool._leaving)
    await turns()
    finished = request.error
    await bench.end()
    assert isinstance(finished, errors.NoWorker | errors.WorkerDied), "it waits for nobody"


@in_loop
async def test_a_description_says_what_an_operator_asks() -> None:
    bench = Bench(echoes, batch_size=2)
    await bench.scaled(2)
    status = bench.model.describe(True)
    assert (status.name, status.version, status.source, status.state) == ("m", "1.0", "m.mar", ModelState.READY)
    assert [worker.state for worker in status.workers] == ["ready", "ready"]
    assert {worker.pid for worker in status.workers} == {process.pid for process in bench.placement.launched}
    assert [worker.threads for worker in status.workers] == [2, 2]
    assert (status.pending, status.remaining, status.last_failure) == (0, 100, None)
    await bench.end()


@in_loop
async def test_its_metrics_tell_and_go_with_it() -> None:
    """S41: no series of a model that is gone."""
    bench = Bench(echoes)
    await bench.scaled(1)
    await body(bench.model.submit(call()))
    text = bench.metrics.text().decode()
    assert 'torchd_requests_total{model="m",outcome="ok",version="1.0"} 1.0' in text
    assert 'torchd_workers{model="m",state="ready",version="1.0"} 1.0' in text
    assert 'torchd_batch_size_sum{model="m",version="1.0"} 1.0' in text
    await bench.end()
    assert 'model="m"' not in bench.metrics.text().decode()


class BrokenSink(NoSink):
    """A metrics plug-in with a bug."""

    def answered(self, model: str, version: str, queue_seconds: float, total_seconds: float) -> None:
        raise RuntimeError("a bug in the metrics")


async def _serve_and_drain() -> None:
    bench = Bench(echoes)
    bench.metrics.sink = BrokenSink()
    await bench.scaled(1)
    async with asyncio.timeout(5):
        assert await body(bench.model.submit(call(b"1"))) == b"1"
    request = bench.model.submit(call(b"2"))
    async with asyncio.timeout(5):
        await bench.model.drain(60.0)
    assert request.state is State.DONE
    await bench.end()


def test_what_goes_wrong_in_the_metrics_costs_nobody_an_answer_or_the_drain() -> None:
    """P01, P14. (The loop is told of the bug, which `in_loop` would take for a failure.)"""
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda _, context: None)
        runner.run(_serve_and_drain())


@in_loop
async def test_a_handlers_own_prediction_time_does_not_end_its_worker() -> None:
    bench = Bench(loads_only)
    bench.metrics.sink = Recorder("prometheus", metrics_config.read(None), True, "vm", None)
    await bench.scaled(1)
    process = bench.placement.launched[0]
    request = bench.model.submit(call(b"1"))
    batch = await process.hears(Batch)
    process.say(Metric("PredictionTime", -math.inf, "ms", "gauge"), *answers(batch))
    assert await body(request) == b"1"
    await bench.end()


@in_loop
async def test_a_worker_that_ends_takes_its_series_along() -> None:
    """P07: every start has a number of its own."""
    bench = Bench(echoes)
    bench.metrics.sink = recorder = Recorder("prometheus", metrics_config.read(None), True, "vm", None)
    await bench.scaled(1)
    bench.placement.launched[0].exit(-9)
    await until(lambda: len(bench.placement.launched) == 2 and bench.model.ready_workers)
    assert recorder.snapshot()(()).decode().count("\nWorkerLoadTime{") == 1
    await bench.end()


@in_loop
async def test_a_batch_of_sequences_a_worker_that_was_let_go_hands_back_is_answered() -> None:
    """P01: scaled down, then killed."""
    bench = Bench(loads_only, sequence_batching=True)
    await bench.scaled(1)
    process = bench.placement.launched[0]
    request = bench.model.submit(call())
    await process.hears(Batch)
    bench.model.scale(0, 0)
    await turns()
    process.exit(-9)
    await until(lambda: not bench.model._pool._leaving)
    finished = request.error
    await bench.end()
    assert isinstance(finished, errors.SequenceLost), "it waits for nobody"


@in_loop
async def test_a_worker_that_dies_is_counted_and_one_that_is_let_go_is_not() -> None:
    """O05: the counter follows what happened."""
    bench = Bench(echoes)
    await bench.scaled(2)
    bench.placement.launched[0].exit(-9)
    await until(lambda: len(bench.placement.launched) == 3 and bench.model.ready_workers == 2)
    bench.model.scale(1, 1)
    await bench.model.settle()
    assert 'torchd_worker_failures_total{model="m",version="1.0"} 1.0' in bench.metrics.text().decode()
    await bench.end()


@in_loop
async def test_every_change_of_a_worker_is_told() -> None:
    """P13: health reads the state when it is told of a change."""
    bench = Bench(echoes)
    await bench.scaled(1)
    before = bench.changes
    bench.placement.launched[0].exit(-9)
    await until(lambda: len(bench.placement.launched) == 2 and bench.model.state is ModelState.READY)
    assert bench.changes >= before + 2
    await bench.end()
