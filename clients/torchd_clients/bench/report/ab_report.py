"""ab_report.csv with the columns of TorchServe's benchmark suite, and what stands in each of them here."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from torchd_clients.bench.measurement import Point
from torchd_clients.bench.report.rows import Row

FILE = "ab_report.csv"
COLUMNS = (
    *("Benchmark", "TS failed requests", "TS throughput", "TS latency P50", "TS latency P90", "TS latency P99"),
    *("TS latency mean", "TS error rate", "Batch size", "Batch delay", "Workers", "Model", "Concurrency", "Input"),
    *("Requests", "Model_p50", "Model_p90", "Model_p99", "Queue time p50", "Queue time p90", "Queue time p99"),
    *("predict_mean", "handler_time_mean", "waiting_time_mean", "worker_thread_mean", "cpu_percentage_mean"),
    *("memory_percentage_mean", "gpu_percentage_mean", "gpu_memory_percentage_mean", "gpu_memory_used_mean"),
)
NOTES = (
    "Each row is the run of median throughput. Times are milliseconds.",
    "TS throughput: good answers a second. TS latency: of good answers, as the client sees it; percentiles of nearest "
    "rank.",
    "Model_p50 to p99, predict_mean: a batch, from sent to a worker until its last answer. Queue time, "
    "waiting_time_mean: a request, from its arrival until sent to a worker. Both by the daemon's own metrics; "
    "percentiles are interpolated within the buckets of its histograms, so they are as coarse as these.",
    "cpu_percentage_mean, memory_percentage_mean: what the daemon and its workers used of this machine's cores and "
    "memory (TorchServe's suite gives the whole machine's use).",
    "handler_time_mean, worker_thread_mean, gpu_*: empty; the daemon tells the last value of these, not all of them.",
)


def write_ab_report(path: Path, rows: Iterable[Row]) -> None:
    """Writes a line for each row; one that was not measured says so under Benchmark."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(columns_of(row) for row in rows)


def columns_of(row: Row) -> Mapping[str, str]:
    """Column to text; columns that nothing is known of are left out."""
    asked = {
        "Benchmark": f"torchd bench, {row.protocol}, {row.device}" if row.point is not None else row.why,
        "Batch size": str(row.batch_size),
        "Batch delay": str(row.batch_delay_ms),
        "Workers": str(row.workers),
        "Model": f"[.mar]({row.archive})",
        "Concurrency": str(row.clients),
        "Input": f"[input]({row.input})",
        "Requests": str(row.requests),
    }
    return asked if row.point is None else asked | _measured(row.point)


def _measured(point: Point) -> dict[str, str]:
    kept, server, usage = point.measurement, point.server, point.usage
    requests = kept.answered + kept.failed
    figures = {
        "TS throughput": kept.throughput,
        **{f"TS latency P{percent}": kept.percentile_ms(percent) for percent in (50, 90, 99)},
        "TS latency mean": kept.mean_ms,
        "TS error rate": 100 * kept.failed / requests if requests else 0.0,
        **{f"Model_p{percent:g}": value for percent, value in server.worker_percentiles_ms.items()},
        **{f"Queue time p{percent:g}": value for percent, value in server.queue_percentiles_ms.items()},
    }
    if server.worker_percentiles_ms:
        figures["predict_mean"] = server.worker_ms
    if server.queue_percentiles_ms or server.queue_ms:
        figures["waiting_time_mean"] = server.queue_ms
    if usage.processes and kept.seconds:
        figures["cpu_percentage_mean"] = 100 * usage.cpu_seconds / kept.seconds / (os.cpu_count() or 1)
        figures["memory_percentage_mean"] = 100 * usage.memory_mib * 2**20 / psutil.virtual_memory().total
    counts = {"TS failed requests": str(kept.failed), "Requests": str(requests)}
    return counts | {name: f"{value:.3f}" for name, value in figures.items()}
