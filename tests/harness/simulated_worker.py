"""A worker on a clock of the test's own, for simulations of a batch policy."""

from __future__ import annotations

from typing import Protocol

from fakes import ManualClock

from torchd_server.batching.policy import BatchPolicy
from torchd_server.request import Request


class Simulation(Protocol):
    """What a worker is part of."""

    @property
    def policy(self) -> BatchPolicy:
        """Who gives it batches."""

    @property
    def clock(self) -> ManualClock:
        """The time."""

    def seconds(self, batch: list[Request]) -> float:
        """How long a batch takes."""


class SimulatedWorker:
    """Takes as long for a batch as its simulation says."""

    in_hand = 0

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.room = simulation.policy.turn.room(0)
        simulation.policy.has_room(self)

    def run(self, batch: list[Request], waited_seconds: float) -> None:
        self.room = 0
        seconds = self.simulation.seconds(batch)
        for request in batch:
            request.sent(self)
        self.simulation.clock.call_at(self.simulation.clock.time() + seconds, lambda: self.ends(batch, seconds))

    def ends(self, batch: list[Request], seconds: float) -> None:
        for request in batch:
            request.finish()
        self.simulation.policy.finished(self, batch, seconds)
        self.room = self.simulation.policy.turn.room(0)
        self.simulation.policy.has_room(self)

    def release(self, request: Request) -> None:
        """It keeps no list of its own."""

    def credit(self, request: Request, size: int) -> None:
        """Nothing is streamed here."""
