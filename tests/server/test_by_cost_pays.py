"""By cost against first come, first served: closed-loop clients with inputs of many lengths, in simulated time.

The claim of batching/by_cost.py, checked deterministically. What a batch costs was measured: BERT-base in float32 on
one core takes 35 ms for the call and 1.9 ms for each token, padding included.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from fakes import ManualClock, call
from harness.simulated_worker import SimulatedWorker

from torchd_server.batching.by_cost import ByCost, CostLimits
from torchd_server.batching.policy import BatchPolicy
from torchd_server.batching.queues import Fifo, Queue
from torchd_server.batching.waits import WAITS
from torchd_server.request import Request

WARM_UP = 0.2  # share of a run that is not counted
SIZE = 8
Lengths = Callable[[random.Random], int]


def texts(median: float, spread: float) -> Lengths:
    """Lengths of texts: many short ones, few long ones, cut at 128 tokens."""
    return lambda chance: int(min(128, max(8, chance.lognormvariate(math.log(median), spread))))


SENTENCES = texts(24, 0.7)
PARAGRAPHS = texts(40, 0.7)


def evenly(chance: random.Random) -> int:
    """No length is likelier than another: hard to group, and much of it is long."""
    return chance.randint(8, 128)


def equal(chance: random.Random) -> int:
    """Nothing to group."""
    return 64


@dataclass(frozen=True)
class Outcome:
    """Answers per second, and latencies in seconds."""

    throughput: float
    p50: float
    p99: float


class Simulation:
    """Clients that send their next request when they have had the answer to the last one, after a short return."""

    def __init__(
        self, queue: str, lengths: Lengths, workers: int, call_ms: float, patience: float, noise: float
    ) -> None:
        self.clock = ManualClock(0.0)
        self.lengths = lengths
        self.call_ms = call_ms
        self.noise = noise
        self.policy = BatchPolicy(self.queue(queue, patience), SIZE, 10_000, WAITS["adaptive"](0.1), self.clock)
        self.random = random.Random(7)
        self.numbers = itertools.count(1)
        self.latencies: list[tuple[float, float]] = []
        for _ in range(workers):
            SimulatedWorker(self)

    def queue(self, name: str, patience: float) -> Queue:
        return Fifo() if name == "fifo" else ByCost(length_of, CostLimits(patience=patience), self.clock)

    def seconds(self, batch: list[Request]) -> float:
        longest = max(length_of(request.call) for request in batch)
        return (self.call_ms + 1.9 * longest * len(batch)) / 1000 * (1 + self.noise * self.random.random())

    def run(self, clients: int, answers: int) -> Outcome:
        for _ in range(clients):
            self.comes_back()
        while len(self.latencies) < answers:
            assert self.clock.next_call is not None, "everybody waits for nobody"
            self.clock.advance_to(self.clock.next_call)
        counted = self.latencies[int(len(self.latencies) * WARM_UP) :]
        seconds = counted[-1][0] - counted[0][0]
        latencies = [latency for _, latency in counted]
        return Outcome(len(counted) / seconds, statistics.median(latencies), statistics.quantiles(latencies, n=100)[98])

    def comes_back(self) -> None:
        self.clock.call_at(self.clock.time() + 0.002 * self.random.uniform(0.5, 1.5), self.sends)

    def sends(self) -> None:
        body = bytes(self.lengths(self.random))
        self.policy.put(Request(call(body), next(self.numbers), 1e9, self.clock, self.answered))

    def answered(self, request: Request) -> None:
        self.latencies.append((self.clock.time(), self.clock.time() - request.received_at))
        self.comes_back()


def length_of(call: object) -> float:
    """The cost key of these tests."""
    return float(len(call.parts[0].body))  # type: ignore[attr-defined]


def outcomes(
    lengths: Lengths,
    clients: int = 32,
    workers: int = 1,
    *,
    call_ms: float = 35.0,
    patience: float = 10.0,
    noise: float = 0.0,
    answers: int = 2500,
) -> tuple[Outcome, Outcome]:
    """First come, first served; by cost."""
    fifo, by_cost = (
        Simulation(queue, lengths, workers, call_ms, patience, noise).run(clients, answers)
        for queue in ("fifo", "cost")
    )
    return fifo, by_cost


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_texts_of_mixed_length_get_half_as_much_again_and_no_longer_tail(workers: int, noise: float) -> None:
    """The bar of the issue: 1.5 times the throughput at a p99 no worse."""
    fifo, by_cost = outcomes(SENTENCES, workers=workers, noise=noise)
    assert by_cost.throughput > 1.7 * fifo.throughput
    assert by_cost.p99 < 0.8 * fifo.p99
    assert by_cost.p50 < 0.7 * fifo.p50


def test_longer_texts_gain_too() -> None:
    fifo, by_cost = outcomes(PARAGRAPHS)
    assert by_cost.throughput > 1.6 * fifo.throughput
    assert by_cost.p99 < fifo.p99


def test_lengths_that_are_hard_to_group_gain_less_and_the_tail_stays() -> None:
    fifo, by_cost = outcomes(evenly)
    assert by_cost.throughput > 1.35 * fifo.throughput
    assert by_cost.p99 < 1.1 * fifo.p99


@pytest.mark.parametrize("clients", [1, 2, 3, 4, 8, 16, 64])
@pytest.mark.parametrize("workers", [1, 2])
def test_it_never_costs_throughput_however_many_clients_there_are(clients: int, workers: int) -> None:
    for lengths in (SENTENCES, equal):
        fifo, by_cost = outcomes(lengths, clients, workers, answers=max(400, 20 * clients))
        assert by_cost.throughput > 0.97 * fifo.throughput


@pytest.mark.parametrize("call_ms", [0.0, 200.0, 1500.0, 20_000.0])
def test_what_the_call_costs_is_learnt_so_that_batches_are_as_full_as_they_should_be(call_ms: float) -> None:
    """On a device where the call is everything, half-empty batches would cost several times the throughput."""
    fifo, by_cost = outcomes(SENTENCES, call_ms=call_ms)
    assert by_cost.throughput > 0.97 * fifo.throughput


@pytest.mark.parametrize("patience", [0.0, 0.5, 2.0])
def test_patience_that_is_over_for_everybody_still_groups(patience: float) -> None:
    """Else an overload would halve the throughput and keep itself alive."""
    fifo, by_cost = outcomes(SENTENCES, patience=patience)
    assert by_cost.throughput > 1.5 * fifo.throughput
