"""A load is split among processes, and what they counted is put together."""

from __future__ import annotations

from array import array

import pytest
from clients.bench.known_delay import KnownDelay, Slots

from torchd_clients.bench.errors import BenchError, NoServer
from torchd_clients.bench.job import Outcome
from torchd_clients.bench.load import Load
from torchd_clients.bench.measure import median_run
from torchd_clients.bench.measurement import Measurement
from torchd_clients.bench.run import is_client_bound, merge, run_load, share_of
from torchd_clients.bench.target import Input, Target


def test_the_shares_of_a_load_add_up_to_it() -> None:
    load = Load(clients=10, rate=100.0, requests=1001, warmup_requests=7, seed=5)
    shares = [share_of(load, number, 4) for number in range(4)]
    for name in ("clients", "rate", "requests", "warmup_requests"):
        assert sum(getattr(one, name) for one in shares) == getattr(load, name)
    assert len({one.seed for one in shares}) == 4


def test_what_the_processes_counted_is_one_measurement_over_the_time_of_all() -> None:
    one = Outcome(100.0, 104.0, array("d", [5.0, 1.0]), {"lost": 1}, 0.5)
    other = Outcome(100.0, 105.0, array("d", [3.0]), {"lost": 2, "late": 1}, 0.25)
    merged = merge([one, other], Load(clients=2, requests=7))
    assert merged.seconds == 5.0
    assert list(merged.latencies_ms) == [1.0, 3.0, 5.0]
    assert merged.errors == {"lost": 3, "late": 1}
    assert merged.throughput == pytest.approx(3 / 5)
    assert merged.client_cpu_seconds == 0.75
    assert merged.client_processes == 2


@pytest.mark.parametrize(
    ("percent", "rank"), [(50, 500), (99, 990), (99.9, 999), (99.95, 1000), (100, 1000), (0.1, 1), (0, 1)]
)
def test_a_percentile_is_the_value_of_nearest_rank(percent: float, rank: int) -> None:
    measured = Measurement(1.0, array("d", map(float, range(1, 1001))))
    assert measured.percentile_ms(percent) == rank


def test_the_run_that_is_kept_has_the_median_throughput() -> None:
    runs = [Measurement(1.0, array("d", [1.0] * count)) for count in (30, 10, 20)]
    assert median_run(runs) == 2
    assert median_run(runs[:2]) == 1


def test_clients_that_use_their_cores_up_are_said_to_be_the_bottleneck() -> None:
    assert is_client_bound(Measurement(2.0, array("d"), client_cpu_seconds=3.6, client_processes=2))
    assert not is_client_bound(Measurement(2.0, array("d"), client_cpu_seconds=3.5, client_processes=2))


def test_a_server_that_is_not_there_is_named() -> None:
    target = Target("rest", "127.0.0.1:9", "m", (Input(b"x"),))
    with pytest.raises(NoServer, match=r"no server at 127\.0\.0\.1:9: cannot connect: Connection refused"):
        run_load(target, Load(seconds=1.0))


@pytest.mark.parametrize(
    ("target", "load", "said"),
    [
        (Target("rest", "127.0.0.1:9", "m", ()), Load(seconds=1.0), "no input"),
        (Target("rest", "127.0.0.1:9", "m", (Input(b"x"),)), Load(), "without an end"),
    ],
)
def test_a_load_that_cannot_be_asked_is_refused(target: Target, load: Load, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        run_load(target, load)


def test_a_server_that_speaks_no_http2_is_told_from_one_that_is_not_there() -> None:
    with KnownDelay(Slots(0.0, count=1)) as server:
        target = Target("grpc", server.address("rest"), "m", (Input(b"x"),))
        with pytest.raises(NoServer, match=r"no server at 127\.0\.0\.1:\d+: connection lost"):
            run_load(target, Load(seconds=1.0))
