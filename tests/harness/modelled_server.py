"""A server whose speed is a formula: what a search does with it takes no time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from fakes import ManualClock

from torchd_clients.tune.outcome import Run
from torchd_clients.tune.served import NotLoaded
from torchd_clients.tune.slo import Slo
from torchd_clients.tune.space import Setting
from torchd_protos.management_pb2 import ModelDescription, OptimizationDescription

LOAD_SECONDS = 5.0


@dataclass
class ModelledServer:
    """A batch of n costs `fixed` + n x `each` ms of one core, half of it in bfloat16; workers beyond cores wait."""

    clock: ManualClock
    cores: int = 2
    fixed: float = 20.0
    each: float = 10.0
    # What a family answers, and why it does not load.
    answers: dict[str, list[bytes]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    report: dict[str, OptimizationDescription] = field(default_factory=dict)
    before_measuring: Callable[[Setting], None] = lambda setting: None
    loaded: list[Setting] = field(default_factory=list)
    measured: list[tuple[Setting, int, float]] = field(default_factory=list)

    def load(self, setting: Setting, *, afresh: bool = False) -> None:
        if setting.optimization in self.broken:
            raise NotLoaded(self.broken[setting.optimization])
        if afresh or not self.loaded or self.loaded[-1] != setting:
            self.clock.advance(LOAD_SECONDS)
        self.loaded.append(setting)

    def ask(self, at_once: int, count: int = 0) -> list[bytes]:
        self.clock.advance(0.1)
        usual = [json.dumps([0.25, 0.75]).encode(), b'["yes"]']
        return self.answers.get(self.loaded[-1].optimization, usual)[: count or None]

    def measure(self, clients: int, seconds: float, slo: Slo) -> Run:
        setting = self.loaded[-1]
        self.before_measuring(setting)
        self.clock.advance(seconds * 1.25)
        workers = min(setting.workers, self.cores)
        batch = max(1, min(setting.batch_size, clients // setting.workers))
        cost = (self.fixed + batch * self.each) / (2 if setting.dtype == "bfloat16" else 1)
        running = min(workers, clients)
        throughput = 1000 * running * batch / cost
        latency = max(cost, 1000 * clients / throughput)
        self.measured.append((setting, clients, seconds))
        return Run(clients, int(throughput * seconds), seconds, throughput, latency, latency, latency)

    def describe(self) -> ModelDescription:
        return ModelDescription(remaining_capacity=100, optimization=self.report.get(self.loaded[-1].optimization))

    def most_workers(self) -> int:
        return 8
