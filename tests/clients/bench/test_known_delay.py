"""`torchd bench` against servers whose answers take a known time: what it shows is what arithmetic says.

A shared machine makes answers later than they should be, never earlier: each latency has an exact lower bound, and all
together the upper one of the time there was (test_schedule.py has the exact values, on a clock of its own).
"""

from __future__ import annotations

from random import Random

import pytest
from clients.bench.known_delay import KnownDelay, Slots

from torchd_clients.bench.load import Load
from torchd_clients.bench.measurement import Measurement
from torchd_clients.bench.run import run_load
from torchd_clients.bench.target import Input, Protocol, Target

# What a timer may ring too early, in ms.
EARLY = 1.0

protocols = pytest.mark.parametrize("protocol", ["grpc", "rest"])


def measure(server: KnownDelay, protocol: Protocol, load: Load) -> Measurement:
    target = Target(protocol, server.address(protocol), "m", (Input(b"x"),), expect=b"ok")
    measured = run_load(target, load)
    assert not measured.errors
    return measured


def due_times(load: Load, count: int) -> list[float]:
    """When the requests of an open loop in one process fall due, counted from its beginning."""
    random, now, due = Random(load.seed * 1000), 0.0, []
    for _ in range(count):
        now += random.expovariate(load.rate)
        due.append(now)
    return due


def assert_at_least(measured: Measurement, due: list[float], expected: list[float]) -> None:
    """Each latency is the expected one or more; together they are no more than the time from when each was due."""
    assert measured.answered == len(expected)
    for got, wanted in zip(measured.latencies_ms, sorted(expected), strict=True):
        assert got >= wanted - EARLY
    assert measured.mean_ms <= sum(measured.seconds - one for one in due) / len(due) * 1000 + EARLY


def assert_always_waiting(measured: Measurement, clients: int) -> None:
    """Clients of a closed loop: throughput times latency is their number, but for those on their way at the end."""
    busy = measured.throughput * measured.mean_ms / 1000
    at_the_end = (measured.percentile_ms(100) / 1000 + 0.25) / measured.seconds
    assert clients * (1 - at_the_end) <= busy <= clients * 1.001


@protocols
def test_closed_loop_throughput_is_clients_over_delay(protocol: Protocol) -> None:
    with KnownDelay(Slots(0.05, count=64)) as server:
        measured = measure(server, protocol, Load(clients=8, seconds=2.0, processes=1))
        assert server.asked - 8 <= measured.answered <= server.asked
    assert measured.seconds == pytest.approx(2.0)
    assert measured.latencies_ms[0] >= 50.0 - EARLY
    # Eight clients, 50 ms: 160 a second at most.
    assert measured.throughput <= 160 * 1.02
    assert_always_waiting(measured, 8)


@protocols
def test_closed_loop_over_capacity_waits_for_a_slot(protocol: Protocol) -> None:
    with KnownDelay(Slots(0.02, count=2)) as server:
        measured = measure(server, protocol, Load(clients=8, seconds=2.0, processes=1))
    # Two slots, 20 ms: 100 a second at most, so that eight clients wait for 80 ms and more.
    assert measured.throughput <= 100 * 1.02
    assert_always_waiting(measured, 8)


@protocols
def test_two_processes_measure_what_one_measures(protocol: Protocol) -> None:
    with KnownDelay(Slots(0.05, count=64)) as server:
        measured = measure(server, protocol, Load(clients=8, requests=101, warmup_requests=9, processes=2))
    assert measured.client_processes == 2
    assert measured.answered == 101
    assert measured.latencies_ms[0] >= 50.0 - EARLY
    # 160 a second, and what was on its way when counting began.
    assert measured.throughput <= 190


@protocols
def test_open_loop_over_capacity_shows_the_backlog(protocol: Protocol) -> None:
    """M/D/1 with twice as many arrivals as it can serve: request n waits for all before it."""
    load = Load(clients=200, rate=100.0, requests=100, seed=7, processes=1)
    with KnownDelay(Slots(0.02, count=1)) as server:
        measured = measure(server, protocol, load)
    due, expected, free_at = due_times(load, 100), [], 0.0
    for one in due:
        free_at = max(free_at, one) + 0.02
        expected.append((free_at - one) * 1000)
    assert expected[-1] > 500  # the backlog is worth the name
    assert_at_least(measured, due, expected)
    # It is over when the last one is answered: no more than capacity is claimed.
    assert measured.throughput <= 50.5


@protocols
@pytest.mark.parametrize("clients", [1, 100])
def test_a_stall_of_the_server_is_seen_by_every_request_that_was_due_in_it(protocol: Protocol, clients: int) -> None:
    """No coordinated omission: though one client is stuck in the stall, what the others would have asked counts."""
    load = Load(clients=clients, rate=100.0, requests=150, seed=7, processes=1)
    stall = 0.8
    with KnownDelay(Slots(0.0, count=200, stall=stall)) as server:
        measured = measure(server, protocol, load)
    due = due_times(load, 150)
    expected = [max(0.0, due[0] + stall - one) * 1000 for one in due]
    assert sum(one > 0 for one in expected) > 60
    assert_at_least(measured, due, expected)


@protocols
def test_an_answer_that_does_not_come_in_time_is_an_error(protocol: Protocol) -> None:
    with KnownDelay(Slots(30.0, count=64)) as server:
        target = Target(protocol, server.address(protocol), "m", (Input(b"x"),))
        measured = run_load(target, Load(clients=2, requests=4, timeout=0.3, processes=1))
    assert measured.errors == {"no answer within 0.3 s": 4}
    assert measured.answered == 0


@protocols
def test_an_answer_without_the_text_expected_is_an_error(protocol: Protocol) -> None:
    with KnownDelay(Slots(0.0, count=64)) as server:
        target = Target(protocol, server.address(protocol), "m", (Input(b"x"),), expect=b"yes")
        measured = run_load(target, Load(clients=1, requests=3, processes=1))
    assert measured.errors == {"an answer without 'yes'": 3}


def test_a_server_that_keeps_no_connection_is_asked_over_new_ones() -> None:
    with KnownDelay(Slots(0.0, count=64), keeps=False) as server:
        measured = measure(server, "rest", Load(clients=3, requests=30, processes=1))
        assert server.asked == 30
    assert measured.answered == 30
