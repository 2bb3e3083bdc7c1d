"""Two models that share the devices of a machine, whatever happens to their workers in whatever order."""

from __future__ import annotations

import asyncio

import pytest
from fakes import FakePlacement, FakeWorker, ManualClock, fails_to_load, in_loop, loads_only, turns, until
from hypothesis import given, settings
from hypothesis import strategies as st

from torchd_protos.frames import FrameLimits, Load
from torchd_server import errors, pool, worker
from torchd_server.accelerators.base import Device, Found
from torchd_server.accelerators.cpu import ThreadBudget
from torchd_server.accelerators.ledger import Account, DeviceLedger, Lease
from torchd_server.batching.policy import BatchPolicy
from torchd_server.batching.queues import Fifo
from torchd_server.batching.waits import AdaptiveWait
from torchd_server.metrics import Metrics
from torchd_server.placement.base import WorkerSpec
from torchd_server.pool import WorkerPool
from torchd_server.settings import ModelSettings
from torchd_server.worker import Worker, WorkerPlan

CORES = 4


async def never_speaks(process: FakeWorker) -> None:
    """It is still in its imports."""


class Machine:
    """Cores that belong to one process at a time, and two pools of which the second has workers of two ranks."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.placement = FakePlacement(loads_only)
        self.threads = ThreadBudget(CORES)
        cores = tuple(Device("neuron", core, str(core)) for core in range(CORES))
        self.ledger = DeviceLedger({"neuron": Found(cores)})
        wishes = {"a": ModelSettings(), "b": ModelSettings(parallel_type="tp", parallel_level=2)}
        self.pools = {
            name: WorkerPool(self._maker(name), Account(self.ledger, name, "1", wish), 0.01, lambda: None)
            for name, wish in wishes.items()
        }

    def _maker(self, name: str):
        metrics = Metrics().of_model(name, "1")
        policy = BatchPolicy(Fifo(), 1, 10, AdaptiveWait(0.1), self.clock)

        def make(lease: Lease) -> Worker:
            common, ranks = lease.environments()
            spec = WorkerSpec(name, 0, None, common, ranks=ranks)  # type: ignore[arg-type] # the fake has no folder
            plan = WorkerPlan(spec, Load(model=name, version="1"), 60.0, 20.0, 0, FrameLimits())
            changed = self.pools[name].changed
            return Worker(plan, self.placement, policy, self.threads, metrics, self.clock, changed)

        return make

    def check(self) -> None:
        """No core has two processes, and none that has one is free."""
        held = {device.identity for lease in self.ledger.leases() for device in lease.devices}
        seen: list[str] = []
        for process in self.placement.alive:
            environment = {**process.spec.environment, **process.spec.ranks[process.rank]}
            seen.append(environment["NEURON_RT_VISIBLE_CORES"])
        assert len(seen) == len(set(seen)), f"processes on the cores {seen}"
        assert set(seen) <= held

    async def act(self, act: str, number: int) -> None:
        """Lets one thing happen; `number` says to whom."""
        alive = self.placement.alive
        match act:
            case "scale a" | "scale b":
                wanted = number % (CORES + 1)
                try:
                    self.pools[act[-1]].scale(wanted)
                except errors.NotEnoughDevices:
                    assert wanted > self.pools[act[-1]].wanted
            case "die" if alive:
                alive[number % len(alive)].exit(-9)
            case "stick" if alive:
                alive[number % len(alive)].is_immortal = True
            case "hang":
                workers = [one for each in self.pools.values() for one in each.workers()]
                if workers:
                    workers[number % len(workers)].kill(errors.WorkerTimeout("it hangs"))
            case "behave":
                self.placement.behave([loads_only, fails_to_load, never_speaks][number % 3])
            case "wait":
                self.clock.advance(number)
                await asyncio.sleep(0.002)
            case "turn":
                await turns(number)

    async def end(self) -> None:
        """Everything that can end does."""
        stops = [asyncio.ensure_future(each.stop(0.01)) for each in self.pools.values()]
        for process in self.placement.launched:
            process.is_immortal = False

        def over() -> bool:
            for process in self.placement.alive:
                if process.was_killed:
                    process.exit(-9)
            self.clock.advance(1)
            return all(stop.done() for stop in stops) and not self.placement.alive

        await until(over)
        await turns()
        assert self.ledger.leases() == []
        assert not any(map(self.ledger.is_quarantined, self.ledger.devices()))


ACTS = ["scale a", "scale b", "die", "stick", "hang", "behave", "wait", "turn"]


@given(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 12)), max_size=25))
@settings(max_examples=25, deadline=None)
def test_no_core_ever_has_two_processes_and_all_come_back(acts: list[tuple[str, int]]) -> None:
    """G04, G05, G06."""

    @in_loop
    async def run() -> None:
        machine = Machine()
        for act, number in acts:
            await machine.act(act, number)
            machine.check()
        await machine.end()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "BACK_OFF_FIRST_SECONDS", 0.001)
        patch.setattr(worker, "UNLOAD_SECONDS", 0.002)
        run()
