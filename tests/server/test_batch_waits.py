"""Full against adaptive: closed-loop clients in simulated time, over concurrency, service times and returns (#2005).

The claim of batching/waits.py, checked deterministically: adaptive has the throughput of full everywhere, and a lone
client never pays for the delay.
"""

from __future__ import annotations

import itertools
import random
import statistics
from dataclasses import dataclass

import pytest
from fakes import ManualClock, call
from harness.simulated_worker import SimulatedWorker

from torchd_server.batching.policy import BatchPolicy
from torchd_server.batching.queues import Fifo
from torchd_server.batching.waits import (
    COMPANY_GAP_SECONDS,
    COMPANY_SECONDS,
    LINGER_LEAST_SECONDS,
    REMEMBERED_BATCHES,
    WAITS,
    Company,
)
from torchd_server.request import Request

WARM_UP = 0.25  # share of a run that is not counted


@dataclass(frozen=True)
class Service:
    """What a batch costs: so much for the call, so much for each request in it."""

    fixed: float
    each: float

    def seconds(self, batch: int) -> float:
        return self.fixed + self.each * batch


@dataclass(frozen=True)
class Outcome:
    """Answers per second, and the median latency in seconds."""

    throughput: float
    latency: float


class Simulation:
    """Clients that send their next request when they have had the answer to the last one, after a short return."""

    def __init__(self, wait: str, service: Service, *, size: int, delay: float, workers: int, returns: float) -> None:
        self.clock = ManualClock(0.0)
        self.policy = BatchPolicy(Fifo(), size, 10_000, WAITS[wait](delay), self.clock)
        self.service = service
        self.returns = returns
        self.random = random.Random(7)
        self.numbers = itertools.count(1)
        self.latencies: list[tuple[float, float]] = []
        for _ in range(workers):
            SimulatedWorker(self)

    def run(self, clients: int, answers: int) -> Outcome:
        for _ in range(clients):
            self.comes_back()
        while len(self.latencies) < answers:
            assert self.clock.next_call is not None, "everybody waits for nobody"
            self.clock.advance_to(self.clock.next_call)
        counted = self.latencies[int(len(self.latencies) * WARM_UP) :]
        seconds = counted[-1][0] - counted[0][0]
        return Outcome(len(counted) / seconds, statistics.median(latency for _, latency in counted))

    def seconds(self, batch: list[Request]) -> float:
        return self.service.seconds(len(batch))

    def comes_back(self) -> None:
        pause = self.returns * self.random.uniform(0.5, 1.5)
        self.clock.call_at(self.clock.time() + pause, self.sends)

    def sends(self) -> None:
        self.policy.put(Request(call(), next(self.numbers), 1e9, self.clock, self.answered))

    def answered(self, request: Request) -> None:
        self.latencies.append((self.clock.time(), self.clock.time() - request.received_at))
        self.comes_back()


def outcome(wait: str, clients: int, service: Service, *, returns: float, workers: int = 1) -> Outcome:
    simulation = Simulation(wait, service, size=8, delay=0.1, workers=workers, returns=returns)
    return simulation.run(clients, answers=max(300, clients * 25))


SERVICES = {
    "1 ms a batch": Service(0.001, 0.0),
    "20 ms a batch": Service(0.02, 0.0),
    "20 ms and 2 ms each": Service(0.02, 0.002),
    "10 ms each": Service(0.0, 0.01),
    "150 ms a batch": Service(0.15, 0.0),
}


@pytest.mark.parametrize("clients", [1, 2, 3, 4, 7, 8, 9, 12, 16, 24, 32, 64])
@pytest.mark.parametrize("service", SERVICES)
def test_adaptive_has_the_throughput_of_full(service: str, clients: int) -> None:
    """#2005: the delay is a bound; giving it up costs nothing at any concurrency."""
    worse = []
    for returns, workers in itertools.product((0.0001, 0.0005, 0.002), (1, 2)):
        full, adaptive = (
            outcome(wait, clients, SERVICES[service], returns=returns, workers=workers) for wait in ("full", "adaptive")
        )
        if adaptive.throughput < 0.95 * full.throughput:
            ratio = adaptive.throughput / full.throughput
            worse.append(f"{workers} workers, returns {returns * 1000:g} ms: {ratio:.2f} of full")
    assert not worse, "\n".join(worse)


@pytest.mark.parametrize("service", SERVICES)
def test_a_lone_client_pays_for_its_own_work_only(service: str) -> None:
    lone = outcome("adaptive", 1, SERVICES[service], returns=0.0005)
    assert lone.latency == pytest.approx(SERVICES[service].seconds(1))
    assert outcome("full", 1, SERVICES[service], returns=0.0005).latency == pytest.approx(lone.latency + 0.1)


def test_eight_clients_are_served_eight_at_a_time() -> None:
    """Going at once would serve one and seven in turn: half the throughput."""
    service = SERVICES["20 ms a batch"]
    eight = outcome("adaptive", 8, service, returns=0.0005)
    assert eight.throughput > 0.9 * 8 / (service.seconds(8) + 0.00075)


@pytest.mark.parametrize("wait", WAITS)
def test_the_longest_wait_is_the_delay(wait: str) -> None:
    """Whatever was observed before."""
    rule = WAITS[wait](0.1)
    for cost in (1e-6, 0.02, 5.0, 1000.0):
        rule.ran(cost)
        for known in (1, 8, 10_000):
            rule.arrived(now=10.0, in_system=known)
            rule.opened(10.0)
            assert rule.until(oldest=10.0, queued=1, running=0) <= 10.1 + 1e-9


def test_adaptive_lingers_at_least_a_millisecond_for_known_company() -> None:
    """Before the first batch has told what it costs."""
    rule = WAITS["adaptive"](0.1)
    rule.arrived(10.0, 2)
    rule.opened(10.0)
    assert rule.until(10.0, 1, 0) == pytest.approx(10.0 + LINGER_LEAST_SECONDS)
    assert rule.until(10.0, 2, 0) <= 10.0
    assert rule.until(10.0, 1, 1) <= 10.0


def test_one_batch_in_eight_waits_for_clients_that_are_not_known_yet() -> None:
    """Batches that leave as soon as everybody known is here would keep the others unknown for ever."""
    rule = WAITS["adaptive"](0.1)
    probed = 0
    for number in range(4 * REMEMBERED_BATCHES):
        now = 10.0 + number
        rule.arrived(now, 1)
        rule.arrived(now, 2)
        rule.opened(now)
        waits = rule.until(now, 2, 0) - now
        assert waits <= LINGER_LEAST_SECONDS + 1e-9
        probed += waits > 0
        rule.left(2)
    assert probed == 4


def test_a_lone_client_never_waits_for_others() -> None:
    rule, company = WAITS["adaptive"](0.1), Company()
    for number in range(3 * REMEMBERED_BATCHES):
        now = 10.0 + number / 10_000
        rule.arrived(now, 1)
        rule.opened(now)
        company.arrived(now, 1)
        company.opened(now)
        assert rule.until(now, 1, 0) <= now
        assert company.until(1) <= now
        rule.left(1)
        company.left(1)


def company_of(clients: int, gap_seconds: float) -> tuple[Company, float]:
    """Requests that have come so fast for a while, the last of them just now, so many in the system at once."""
    company = Company()
    now = 10.0
    for _ in range(10):
        for place in range(clients):
            now += gap_seconds
            company.arrived(now, place + 1)
        company.opened(now)
        company.left(clients)
    return company, now


def test_quick_batches_of_one_wait_a_moment_for_the_clients_that_are_known() -> None:
    company, now = company_of(4, 0.0002)
    company.opened(now)
    assert company.until(3) == pytest.approx(now + COMPANY_SECONDS)
    assert company.until(4) <= now


def test_requests_that_come_seldom_are_not_held_up() -> None:
    company, now = company_of(4, 2 * COMPANY_GAP_SECONDS)
    company.opened(now)
    assert company.until(1) <= now
