"""The files of a report, of points whose figures are known."""

from __future__ import annotations

import csv
import os
import re
from array import array
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from clients.bench.made_up import point, run

from torchd_clients.bench.measurement import Measurement, ServerFigures, Usage
from torchd_clients.bench.points import read_points
from torchd_clients.bench.report.ab_report import columns_of
from torchd_clients.bench.report.rows import Row, row_of
from torchd_clients.bench.report.write import write_report

# reference/torchserve.md, 12.1: in this order.
COLUMNS = (
    "Benchmark,TS failed requests,TS throughput,TS latency P50,TS latency P90,TS latency P99,TS latency mean,"
    "TS error rate,Batch size,Batch delay,Workers,Model,Concurrency,Input,Requests,Model_p50,Model_p90,Model_p99,"
    "Queue time p50,Queue time p90,Queue time p99,predict_mean,handler_time_mean,waiting_time_mean,worker_thread_mean,"
    "cpu_percentage_mean,memory_percentage_mean,gpu_percentage_mean,gpu_memory_percentage_mean,gpu_memory_used_mean"
)
ABOUT = {"when": "2026-01-02T03:04:05+00:00", "version": "9.9", "machine": "a <b>", "command": "torchd bench --suite x"}
MEASURED = point(run(50.0, errors={"HTTP 503 |<b>": 25}), run(48.0), run(55.0))
SKIPPED = Row("scripted_mode_m", "/m.mar", "kitten.jpg", "", "gpu", 1, 8, 100, 10, 500, why="skipped: no GPU here")


@pytest.fixture
def rows() -> list[Row]:
    rest, grpc = row_of(MEASURED, "/m.mar"), row_of(replace(MEASURED, protocol="grpc", workers=4), "/m.mar")
    return [rest, grpc, SKIPPED]


def test_ab_report_has_the_columns_of_torchserves_suite_and_the_figures_of_the_point(
    tmp_path: Path, rows: list[Row]
) -> None:
    write_report(tmp_path, rows, ABOUT)
    text = (tmp_path / "ab_report.csv").read_text()
    assert text.splitlines()[0] == COLUMNS
    first, second, skipped = csv.DictReader(text.splitlines())
    # A hundred good answers in two seconds, 1 to 100 ms; 25 of 125 failed.
    wanted = {
        "Benchmark": "torchd bench, rest, cpu",
        "TS failed requests": "25",
        "TS throughput": "50.000",
        "TS latency P50": "50.000",
        "TS latency P90": "90.000",
        "TS latency P99": "99.000",
        "TS latency mean": "50.500",
        "TS error rate": "20.000",
        "Batch size": "4",
        "Batch delay": "100",
        "Workers": "2",
        "Model": "[.mar](/m.mar)",
        "Concurrency": "10",
        "Input": "[input](kitten.jpg)",
        "Requests": "125",
        "Model_p50": "11.000",
        "Model_p90": "14.000",
        "Model_p99": "20.250",
        "Queue time p50": "2.000",
        "Queue time p90": "4.500",
        "Queue time p99": "8.000",
        "predict_mean": "12.500",
        "handler_time_mean": "",
        "waiting_time_mean": "3.500",
        "worker_thread_mean": "",
        # 1.5 s of 2 s on all cores; 256 MiB.
        "cpu_percentage_mean": f"{75 / (os.cpu_count() or 1):.3f}",
        "memory_percentage_mean": f"{100 * 256 * 2**20 / psutil.virtual_memory().total:.3f}",
        "gpu_percentage_mean": "",
        "gpu_memory_percentage_mean": "",
        "gpu_memory_used_mean": "",
    }
    assert first == wanted
    assert second == wanted | {"Benchmark": "torchd bench, grpc, cpu", "Workers": "4"}
    assert skipped["Benchmark"] == "skipped: no GPU here"
    assert {name for name, value in skipped.items() if value} == {
        *("Benchmark", "Batch size", "Batch delay", "Workers", "Model", "Concurrency", "Input", "Requests")
    }


def test_what_a_server_does_not_tell_is_empty_and_not_zero() -> None:
    told = columns_of(row_of(replace(MEASURED, server=ServerFigures(), usage=Usage())))
    for name in ("Model_p50", "Queue time p50", "predict_mean", "waiting_time_mean", "cpu_percentage_mean"):
        assert name not in told


def test_report_md_has_a_table_for_each_mode_and_model_with_the_version_first(tmp_path: Path, rows: list[Row]) -> None:
    write_report(tmp_path, rows, ABOUT)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert lines[:7] == [
        *("# torchd bench on cpu", "", "Date: 2026-01-02T03:04:05+00:00", "", "torchd version: 9.9", ""),
        "Machine: a <b>",
    ]
    assert [line for line in lines if line.startswith("## ")][:2] == ["## eager_mode_m", "## scripted_mode_m"]
    table = lines[lines.index("## eager_mode_m") + 2 :][:4]
    assert table[0] == f"| version | {COLUMNS.replace(',', ' | ')} |"
    assert table[1] == f"| {' | '.join([':-:'] * 31)} |"
    assert table[2].startswith("| 9.9 | torchd bench, rest, cpu | 25 | 50.000 | 50.000 | 90.000 | 99.000 |")
    assert table[3].startswith("| 9.9 | torchd bench, grpc, cpu |")
    assert "handler_time_mean, worker_thread_mean, gpu_*: empty" in lines[-1]


def test_the_page_needs_nothing_else_and_shows_text_as_text(tmp_path: Path, rows: list[Row]) -> None:
    write_report(tmp_path, rows, ABOUT)
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"<script|<link|@import|url\(", page)
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert len(sources) == 4  # two pictures, light and dark
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "prefers-color-scheme: dark" in page
    assert "25 x HTTP 503 |&lt;b&gt;" in page
    assert "a &lt;b&gt;" in page
    assert "skipped: no GPU here" in page


def test_everything_is_written_and_the_points_come_back(tmp_path: Path, rows: list[Row]) -> None:
    written = write_report(tmp_path / "new" / "folder", rows, ABOUT)
    names = ["bench.json", "ab_report.csv", "report.md", "latency.png", "throughput.png", "report.html"]
    assert [path.name for path in written] == names
    for path in written:
        assert path.stat().st_size > 500
    assert read_points(written[0]) == (MEASURED, replace(MEASURED, protocol="grpc", workers=4))
    for path in written[3:5]:
        assert path.read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("clients", [[10], [1, 8, 32]], ids=["one load", "over clients"])
def test_pictures_are_drawn_of_any_loads(tmp_path: Path, clients: list[int]) -> None:
    points = [point(run(50.0 * count, [3.0]), clients=count) for count in clients]
    points.append(point(run(20.0), rate=20.0, clients=256, model="open"))
    points.append(replace(points[0], model="failed", measurement=Measurement(1.0, array("d"), {"x": 1})))
    write_report(tmp_path, [row_of(one) for one in points], ABOUT)
    assert (tmp_path / "throughput.png").stat().st_size > 5000


def test_a_report_of_nothing_measured_has_no_pictures(tmp_path: Path) -> None:
    assert "latency.png" not in {path.name for path in write_report(tmp_path, [SKIPPED], ABOUT)}
    assert "skipped: no GPU here" in (tmp_path / "report.html").read_text()
