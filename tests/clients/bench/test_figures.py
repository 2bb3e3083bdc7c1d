"""What the daemon's metrics say of a load."""

from __future__ import annotations

from math import inf

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from torchd_clients.bench.figures import between, read

BEFORE = """\
torchd_batch_size_bucket{le="1.0",model="m",version="1.0"} 2.0
torchd_batch_size_bucket{le="2.0",model="m",version="1.0"} 2.0
torchd_batch_size_bucket{le="+Inf",model="m",version="1.0"} 2.0
torchd_batch_size_count{model="m",version="1.0"} 2.0
torchd_batch_size_sum{model="m",version="1.0"} 2.0
torchd_batch_size_sum{model="other",version="1.0"} 900.0
"""
AFTER = """\
# HELP torchd_batch_size Requests in a batch
torchd_batch_size_bucket{le="1.0",model="m",version="1.0"} 3.0
torchd_batch_size_bucket{le="2.0",model="m",version="1.0"} 7.0
torchd_batch_size_bucket{le="+Inf",model="m",version="1.0"} 9.0
torchd_batch_size_count{model="m",version="1.0"} 9.0
torchd_batch_size_sum{model="m",version="1.0"} 23.0
torchd_batch_size_sum{model="other",version="1.0"} 1000.0
torchd_queue_seconds_bucket{le="0.0005",model="m",version="1.0"} 4.0
torchd_queue_seconds_bucket{le="+Inf",model="m",version="1.0"} 4.0
torchd_queue_seconds_count{model="m",version="1.0"} 4.0
torchd_queue_seconds_sum{model="m",version="1.0"} 0.001
torchd_worker_seconds_count{model="m",version="1.0"} 4.0
torchd_worker_seconds_sum{model="m",version="1.0"} 0.02
torchd_queue_depth{model="m",version="1.0"} 1.0
torchd_tasks 12.0
"""


def test_the_figures_are_of_what_happened_between_two_readings() -> None:
    figures = between(read(BEFORE, "m"), read(AFTER, "m"))
    assert figures.batch_sizes == {1.0: 1, 2.0: 4, inf: 2}
    assert figures.mean_batch == 3.0
    assert figures.queue_ms == pytest.approx(0.25)
    assert figures.queue_times_ms == {0.5: 4}
    assert figures.worker_ms == pytest.approx(5.0)


def test_all_versions_of_a_model_count_unless_one_is_named() -> None:
    page = BEFORE + BEFORE.replace('"1.0"}', '"2.0"}')
    assert read(page, "m")["torchd_batch_size_sum", inf] == 4.0
    assert read(page, "m", "2.0")["torchd_batch_size_sum", inf] == 2.0


def test_torchserve_tells_its_queue_time_in_its_own_metrics() -> None:
    page = (
        'ts_inference_requests_total{model_name="m",model_version="default",hostname="h",} 4.0\n'
        'ts_queue_latency_microseconds{model_name="m",model_version="default",hostname="h",} 8000.0\n'
    )
    assert between({}, read(page, "m")).queue_ms == 2.0


def test_a_server_without_metrics_has_no_figures() -> None:
    page = generate_latest(CollectorRegistry()).decode()
    figures = between(read(page, "m"), read(page, "m"))
    assert (figures.queue_ms, figures.mean_batch, figures.batch_sizes) == (0.0, 0.0, {})


def test_percentiles_lie_evenly_within_a_bucket_as_prometheus_has_it() -> None:
    counts = {0.001: 0.0, 0.0025: 60.0, 0.005: 90.0, 0.01: 90.0, 0.025: 98.0, inf: 100.0}
    page = "".join(
        f'torchd_queue_seconds_bucket{{le="{"+Inf" if bound == inf else bound}",model="m",version="1.0"}} {count}\n'
        for bound, count in counts.items()
    )
    found = between({}, read(page, "m")).queue_percentiles_ms
    # 50 of the 60 between 1 and 2.5 ms; the last of the 30 up to 5 ms; beyond the last bound: that bound.
    assert found == pytest.approx({50.0: 1.0 + 1.5 * 50 / 60, 90.0: 5.0, 99.0: 25.0})
    assert between({}, read("", "m")).queue_percentiles_ms == {}
