"""The workers of one model version: as many as wanted, started again with a pause, given up when they only fail."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from fakes import (
    FakePlacement,
    FakeWorker,
    ManualClock,
    echoes,
    fails_to_load,
    in_loop,
    loads,
    loads_only,
    turns,
    until,
)

from torchd_protos.frames import FrameLimits, Load
from torchd_server import errors, pool
from torchd_server.accelerators.base import Device, Found
from torchd_server.accelerators.cpu import ThreadBudget
from torchd_server.accelerators.ledger import Account, DeviceLedger, Lease
from torchd_server.batching.policy import BatchPolicy
from torchd_server.batching.queues import Fifo
from torchd_server.batching.waits import AdaptiveWait
from torchd_server.metrics import Metrics
from torchd_server.placement.base import Output, WorkerSpec
from torchd_server.pool import FAILURES_BEFORE_GIVING_UP, WorkerPool
from torchd_server.settings import ModelSettings
from torchd_server.worker import Worker, WorkerPlan


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BACK_OFF_FIRST_SECONDS", 0.001)


class Bench:
    """A pool over fake processes."""

    def __init__(self, *behaviours: Callable[[FakeWorker], object], neuron_cores: int = 0) -> None:
        self.clock = ManualClock()
        self.placement = FakePlacement(*behaviours)  # type: ignore[arg-type]
        self.threads = ThreadBudget(4)
        cores = tuple(Device("neuron", core, str(core)) for core in range(neuron_cores))
        self.devices = DeviceLedger({"neuron": Found(cores)})
        self.lent: list[Lease] = []
        self.metrics = Metrics().of_model("m", "1.0")
        self.policy = BatchPolicy(Fifo(), 1, 10, AdaptiveWait(0.1), self.clock)
        self.changes = 0
        self.pool = WorkerPool(self._worker, Account(self.devices, "m", "1.0", ModelSettings()), 1.0, self._changed)

    def _worker(self, lease: Lease) -> Worker:
        self.lent.append(lease)
        plan = WorkerPlan(
            WorkerSpec("m/1.0", 0, directory=None),  # type: ignore[arg-type] # the fake has no folder
            Load(model="m", version="1.0"),
            60.0,
            20.0,
            0,
            FrameLimits(),
        )
        return Worker(plan, self.placement, self.policy, self.threads, self.metrics, self.clock, self.pool.changed)

    def _changed(self) -> None:
        self.changes += 1

    @property
    def alive(self) -> int:
        return len(self.placement.alive)


async def loads_then_dies(worker: FakeWorker) -> None:
    await loads(worker)
    worker.exit(1)


@in_loop
async def test_scaling_starts_and_stops_workers() -> None:
    bench = Bench(echoes)
    for wanted in (2, 4, 1, 3):
        bench.pool.scale(wanted)
        assert await bench.pool.settle() is None
        await until(lambda wanted=wanted: bench.alive == wanted)  # type: ignore[misc]
        assert (bench.pool.wanted, bench.pool.ready) == (wanted, wanted)
    await bench.pool.stop(1.0)
    assert (bench.pool.wanted, bench.alive) == (0, 0)
    assert bench.changes > 8


@in_loop
async def test_a_dead_worker_is_replaced_and_its_failure_kept() -> None:
    """W02."""
    bench = Bench(echoes)
    bench.pool.scale(1)
    await bench.pool.settle()
    first = bench.placement.launched[0]
    first.output("stderr", "Segmentation fault")
    first.exit(-11)
    await until(lambda: bench.pool.ready == 1 and len(bench.placement.launched) == 2)
    failure = bench.pool.last_failure
    assert failure is not None
    assert "SIGSEGV" in str(failure.error)
    assert list(failure.stderr) == ["Segmentation fault"]
    await bench.pool.stop(1.0)


@in_loop
async def test_settling_tells_the_failure_of_a_worker_that_cannot_load() -> None:
    bench = Bench(fails_to_load)
    bench.pool.scale(1)
    assert isinstance(await bench.pool.settle(), errors.LoadFailed)
    await bench.pool.stop(1.0)
    assert bench.alive == 0


@in_loop
async def test_a_pool_that_only_fails_is_given_up_and_started_anew_by_scaling() -> None:
    """W13, P12."""
    bench = Bench(fails_to_load)
    bench.pool.scale(1)
    await until(lambda: bench.pool.given_up)
    assert len(bench.placement.launched) == FAILURES_BEFORE_GIVING_UP
    await asyncio.sleep(0.05)
    assert len(bench.placement.launched) == FAILURES_BEFORE_GIVING_UP, "it goes on by itself"
    bench.placement.behave(echoes)
    bench.pool.scale(1)
    assert bench.pool.given_up is None
    await until(lambda: bench.pool.ready == 1)
    assert await bench.pool.settle() is None
    await bench.pool.stop(1.0)


@in_loop
async def test_scaling_a_failed_pool_starts_one_worker_for_each_that_is_wanted() -> None:
    """A slot that rested when the pool gave up must not be kept twice."""
    bench = Bench(fails_to_load)
    bench.pool.scale(3)
    await until(lambda: bench.pool.given_up)
    bench.placement.behave(echoes)
    before = len(bench.placement.launched)
    bench.pool.scale(3)
    await until(lambda: bench.pool.ready == 3)
    await asyncio.sleep(0.1)  # the pauses that ran when it was given up are over
    started, alive = len(bench.placement.launched) - before, bench.alive
    await bench.pool.stop(1.0)
    left = bench.alive
    for process in bench.placement.alive:
        process.exit(0)
    await turns(30)
    assert (alive, left) == (3, 0)
    assert started <= 3 + 2, "no more than were wanted, and those that were loading"


@in_loop
async def test_a_worker_that_loads_after_all_ends_the_giving_up() -> None:
    """One slot failed five times while another was still loading: the model can answer."""
    gate = asyncio.Event()

    async def slow(worker: FakeWorker) -> None:
        worker.hello()
        await gate.wait()
        await echoes(worker)

    bench = Bench(slow, fails_to_load)
    bench.pool.scale(2)
    await until(lambda: bench.pool.given_up)
    gate.set()
    slow_worker = bench.placement.launched[0]
    await until(lambda: bench.pool.ready == 1 or slow_worker.exited.done())
    ready, given_up = bench.pool.ready, bench.pool.given_up
    await bench.pool.stop(1.0)
    assert given_up is None or ready == 0, "a ready worker stands beside a pool that was given up"


@in_loop
async def test_scaling_a_failed_pool_keeps_the_worker_that_is_still_loading() -> None:
    gate = asyncio.Event()

    async def slow(worker: FakeWorker) -> None:
        worker.hello()
        await gate.wait()
        await echoes(worker)

    bench = Bench(slow, fails_to_load)
    bench.pool.scale(2)
    await until(lambda: bench.pool.given_up)
    bench.placement.behave(echoes)
    bench.pool.scale(2)
    gate.set()
    await until(lambda: bench.pool.ready == 2)
    await asyncio.sleep(0.05)
    alive = bench.alive
    await bench.pool.stop(1.0)
    left = bench.alive
    for process in bench.placement.alive:
        process.exit(0)
    await turns(30)
    assert (alive, left) == (2, 0)


@in_loop
async def test_a_pool_with_a_ready_worker_is_never_given_up() -> None:
    """However often another fails: over a day of failures at the longest pause, too."""

    class Choosy(FakePlacement):
        async def launch(self, spec: WorkerSpec, output: Output) -> list[FakeWorker]:
            if self.launched:
                self.refused += 1
                raise OSError(11, "Resource temporarily unavailable")
            return await super().launch(spec, output)

        refused = 0

    bench = Bench()
    bench.placement = choosy = Choosy(echoes)
    bench.pool.scale(1)
    await bench.pool.settle()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "BACK_OFF_MOST_ONCE_READY_SECONDS", 0.0)
        bench.pool.scale(2)
        # 2.0 ** 1024 is no float any more
        for _ in range(20_000):
            await asyncio.sleep(0)
            if choosy.refused > 1100:
                break
        refused, given_up = choosy.refused, bench.pool.given_up
        tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith("keep worker slot")]
        await bench.pool.stop(1.0)
    assert given_up is None
    assert len(tasks) == 2, "a slot is kept by nobody any more"
    assert refused > 1100


@in_loop
async def test_an_unexpected_error_does_not_leave_a_slot_to_nobody() -> None:
    """Whatever a start raises is a failure of that start: told, counted, tried again."""

    class Broken(FakePlacement):
        async def launch(self, spec: WorkerSpec, output: Output) -> list[FakeWorker]:
            raise ValueError("embedded null byte")  # what Popen says of a zero byte in an environment variable

    bench = Bench()
    bench.placement = Broken()
    bench.pool.scale(1)
    try:
        assert isinstance(await asyncio.wait_for(bench.pool.settle(), 1.0), errors.TorchdError)
    finally:
        await bench.pool.stop(1.0)


@in_loop
async def test_a_surplus_worker_finishes_and_a_resting_slot_leaves_at_once() -> None:
    """W27, M04."""
    bench = Bench(fails_to_load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "BACK_OFF_FIRST_SECONDS", 1000.0)
        bench.pool.scale(1)
        await until(lambda: bench.pool.resting == 1 and len(bench.placement.launched) == 2)
        await bench.pool.stop(1.0)
    assert bench.pool.wanted == 0


@in_loop
async def test_scaling_down_at_once_leaves_no_process() -> None:
    """The pool changes its mind while the process is being started."""
    for ticks in range(6):
        bench = Bench(echoes)
        bench.pool.scale(1)
        await turns(ticks)
        bench.pool.scale(0)
        await bench.pool.stop(1.0)
        await turns(30)
        alive = bench.alive
        for process in bench.placement.alive:
            process.exit(0)
        assert alive == 0, f"after {ticks} turns of the loop"


def test_the_pause_grows_from_nothing_to_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """P12, W30: with jitter, so that models do not start in step."""
    monkeypatch.undo()
    random.seed(1)
    pauses = []
    keeper = WorkerPool(lambda _: None, None, 1.0, lambda: None)  # type: ignore[arg-type, return-value]
    for failures in range(1, 12):
        keeper._deaths = keeper._failures = failures
        pauses.append(keeper._back_off())
    assert pauses[0] == 0.0
    for number, pause in enumerate(pauses[1:]):
        assert pause == pytest.approx(min(60.0, 0.5 * 2.0**number), rel=0.2 + 1e-9)


@in_loop
async def test_a_model_that_loads_is_never_given_up() -> None:
    """A restart limit is about models that never work."""
    bench = Bench(loads_then_dies)
    bench.pool.scale(1)
    await until(lambda: len(bench.placement.launched) > FAILURES_BEFORE_GIVING_UP + 2)
    assert bench.pool.given_up is None
    await bench.pool.stop(1.0)


def cores_lent(bench: Bench) -> list[list[str]]:
    return [[device.identity for device in lease.devices] for lease in bench.devices.leases()]


@in_loop
async def test_a_worker_that_died_comes_back_on_the_devices_of_its_slot() -> None:
    bench = Bench(echoes, neuron_cores=3)
    bench.pool.scale(2)
    assert await bench.pool.settle() is None
    bench.placement.launched[1].exit(-9)
    await until(lambda: bench.pool.ready == 2 and len(bench.lent) == 3)
    assert bench.lent[2] is bench.lent[1]
    await bench.pool.stop(1.0)
    assert bench.devices.leases() == []


@in_loop
async def test_a_refused_scale_changes_nothing() -> None:
    """All devices are borrowed before the first slot is made, or none."""
    bench = Bench(echoes, neuron_cores=2)
    bench.pool.scale(1)
    assert await bench.pool.settle() is None
    with pytest.raises(errors.NotEnoughDevices, match="asks for 3 NeuronCores"):
        bench.pool.scale(3)
    assert (bench.pool.wanted, bench.alive, cores_lent(bench)) == (1, 1, [["0"]])
    await bench.pool.stop(1.0)


@in_loop
async def test_who_is_scaled_up_again_at_once_waits_for_the_processes_that_leave() -> None:
    """G05: NeuronCores are free when the process that holds them is gone, and not before."""
    bench = Bench(loads_only, neuron_cores=2)
    bench.pool.scale(2)
    assert await bench.pool.settle() is None
    for process in bench.placement.launched:
        process.is_immortal = True  # it takes its time
    bench.pool.scale(0)
    bench.pool.scale(2)
    await turns(30)
    assert len(bench.placement.launched) == 2
    bench.placement.launched[0].exit(0)
    await until(lambda: bench.clock.advance(0.3) or len(bench.placement.launched) == 3)
    await turns(30)
    assert len(bench.placement.launched) == 3
    assert [device.identity for device in bench.lent[2].devices] == ["0"]
    bench.placement.launched[1].exit(0)
    await until(lambda: bench.clock.advance(0.3) or len(bench.placement.launched) == 4)
    await bench.pool.stop(1.0)
    assert bench.devices.leases() == []


@in_loop
async def test_a_device_whose_process_cannot_be_ended_is_lent_to_nobody_until_it_has() -> None:
    """G06: the slot goes on with another device, or waits; nothing of the daemon is blocked."""
    bench = Bench(echoes, neuron_cores=2)
    bench.pool.scale(1)
    assert await bench.pool.settle() is None
    [stuck] = bench.placement.launched
    stuck.is_immortal = True  # in a driver, where no signal reaches it
    [worker] = bench.pool.workers()
    worker.kill(errors.WorkerTimeout("it hangs"))
    bench.clock.advance(10.0)
    await until(lambda: bench.pool.ready == 1 and len(bench.lent) == 2)
    assert [device.identity for device in bench.lent[1].devices] == ["1"]
    assert [bench.devices.is_quarantined(device) for device in bench.devices.devices()] == [True, False]
    with pytest.raises(errors.NotEnoughDevices, match="1 held by a process that could not be ended"):
        bench.pool.scale(2)
    stuck.exit(-9)
    await until(lambda: not bench.devices.is_quarantined(bench.devices.devices()[0]))
    bench.pool.scale(2)
    assert await bench.pool.settle() is None
    await bench.pool.stop(1.0)
    assert bench.devices.leases() == []


@in_loop
async def test_a_slot_without_a_device_tries_again_and_blames_nobody() -> None:
    bench = Bench(echoes, neuron_cores=1)
    bench.pool.scale(1)
    assert await bench.pool.settle() is None
    [stuck] = bench.placement.launched
    stuck.is_immortal = True
    bench.pool.workers()[0].kill(errors.WorkerTimeout("it hangs"))
    bench.clock.advance(10.0)
    await until(lambda: bench.pool.last_failure and "NeuronCore" in str(bench.pool.last_failure.error))
    assert bench.pool.given_up is None
    stuck.exit(-9)
    await until(lambda: bench.pool.ready == 1)
    await bench.pool.stop(1.0)
    assert bench.devices.leases() == []


@in_loop
async def test_a_process_that_stays_after_its_slot_was_dismissed_keeps_its_device() -> None:
    bench = Bench(loads_only, neuron_cores=1)
    bench.pool.scale(1)
    assert await bench.pool.settle() is None
    [stuck] = bench.placement.launched
    stuck.is_immortal = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchd_server.worker.UNLOAD_SECONDS", 0.01)
        bench.pool.scale(0)
        await until(lambda: stuck.was_killed)
    bench.clock.advance(10.0)
    await until(lambda: bench.devices.is_quarantined(bench.devices.devices()[0]))
    assert cores_lent(bench) == [["0"]]
    stuck.exit(-9)
    await until(lambda: not bench.devices.leases())
    await bench.pool.stop(1.0)
