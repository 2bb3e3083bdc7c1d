"""`torchd bench --suite --report` and `torchd bench-compare` as a user types them, on daemons that they start."""

from __future__ import annotations

import csv
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from harness.archives import pack_model
from harness.commands import environment, install_commands

from torchd_clients.bench.measurement import Point
from torchd_clients.bench.points import read_about, read_points

# As printed in TorchServe's article on tuning: paths and how many requests are replaced, workers and sizes fewer.
SUITE = """
Model_name:
    eager_mode:
        benchmark_engine: "ab"
        url: "store/echo.mar"
        workers:
            - 1
            - 2
        batch_delay: 20
        batch_size:
            - 1
            - 4
        requests: 60
        concurrency: 10
        input: "sample.txt"
        backend_profiling: False
        exec_env: "local"
        processors:
            - "cpu"
            - "gpus": "all"
"""


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str


class Terminal:
    """A folder in which commands are typed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scratch").mkdir()
        (folder / "sample.txt").write_text("hello")
        self.variables = environment(install_commands(folder / "commands"), folder / "scratch")

    def torchd(self, *words: str) -> Ended:
        command = [str(self.folder / "commands" / "torchd"), *words]
        ended = subprocess.run(
            command, cwd=self.folder, env=self.variables, capture_output=True, text=True, timeout=200
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path)


def agrees(line: dict[str, str], point: Point) -> None:
    """That a line of the csv is what follows from the point, worked out anew from its latencies and counts."""
    kept = point.measurement
    latencies = sorted(kept.latencies_ms)
    for percent in (50, 90, 99):
        rank = max(1, -(-len(latencies) * percent // 100))
        assert float(line[f"TS latency P{percent}"]) == pytest.approx(latencies[rank - 1], rel=1e-3, abs=1e-3)
    assert float(line["TS latency mean"]) == pytest.approx(sum(latencies) / len(latencies), rel=1e-3, abs=1e-3)
    assert float(line["TS throughput"]) == pytest.approx(len(latencies) / kept.seconds, abs=1e-3)
    assert int(line["Requests"]) == len(latencies) + sum(kept.errors.values())
    assert float(line["TS error rate"]) == 100 * int(line["TS failed requests"]) / int(line["Requests"])
    assert float(line["predict_mean"]) == pytest.approx(point.server.worker_ms, abs=1e-3)
    assert float(line["waiting_time_mean"]) == pytest.approx(point.server.queue_ms, abs=1e-3)
    assert 0 < float(line["Model_p50"]) <= float(line["Model_p90"]) <= float(line["Model_p99"])
    assert 0 < float(line["Queue time p50"]) <= float(line["Queue time p90"]) <= float(line["Queue time p99"])
    cores = float(line["cpu_percentage_mean"]) / 100 * (os.cpu_count() or 1)
    assert cores * kept.seconds == pytest.approx(point.usage.cpu_seconds, abs=0.01)
    memory = float(line["memory_percentage_mean"]) / 100 * psutil.virtual_memory().total / 2**20
    assert memory == pytest.approx(point.usage.memory_mib, rel=0.05)


@pytest.mark.timeout(240)
def test_the_suite_of_the_article_is_measured_and_reported(terminal: Terminal) -> None:
    """Item 8 of the issue: seed 003's YAML in, TorchServe's files, pictures and a page out."""
    pack_model(terminal.folder, "echo")
    (terminal.folder / "suite.yaml").write_text(SUITE)
    ended = terminal.torchd("bench", "--suite", "suite.yaml", "--report", "results", "--repeats", "1", "--warmup", "0")
    assert ended.code == 0, ended.out + ended.err
    results = terminal.folder / "results"
    points = read_points(results / "bench.json")
    settings = [(point.workers, point.batch_size, point.protocol) for point in points]
    assert settings[:8] == [(count, size, over) for count in (1, 2) for size in (1, 4) for over in ("grpc", "rest")]
    for point in points:
        assert (point.model, point.batch_delay_ms, point.clients) == ("eager_mode_Model_name", 20, 10)
        assert (point.measurement.answered, point.measurement.errors) == (60, {})
        assert sum(point.server.queue_times_ms.values()) >= 60
    lines = list(csv.DictReader((results / "ab_report.csv").read_text().splitlines()))
    measured = [line for line in lines if line["TS throughput"]]
    assert len(measured) == len(points)
    for line, point in zip(measured, points, strict=True):
        agrees(line, point)
        assert line["Model"] == f"[.mar]({terminal.folder}/store/echo.mar)"
    if not any(point.device == "gpu" for point in points):
        skipped = [line for line in lines if not line["TS throughput"]]
        assert [line["Benchmark"] for line in skipped] == ["skipped: this machine has no GPU"] * 4
        assert "workers/batch 1/1, 1/4, 2/1, 2/4: skipped: this machine has no GPU" in ended.out
    assert "note: suite.yaml: benchmark_engine 'ab' is not run" in ended.err
    assert "--suite suite.yaml" in read_about(results / "bench.json")["command"]
    assert "## eager_mode_Model_name" in (results / "report.md").read_text()
    for name in ("latency.png", "throughput.png"):
        assert (results / name).read_bytes().startswith(b"\x89PNG")
    page = (results / "report.html").read_text()
    assert len(re.findall(r'"data:image/png;base64,', page)) == 4
    assert not list((terminal.folder / "scratch").iterdir())
    same = terminal.torchd("bench-compare", "results/bench.json", "results/ab_report.csv")
    assert same.code == 0, same.out + same.err
    assert "0 better, 0 worse" in same.out


@pytest.mark.timeout(240)
def test_a_setting_that_cannot_be_served_is_a_row_and_the_others_are_measured(terminal: Terminal) -> None:
    pack_model(terminal.folder, "echo")
    (terminal.folder / "store" / "broken.mar").write_bytes(b"no archive")
    mode = "{url: store/%s.mar, input: sample.txt, requests: 20, concurrency: [1, 2]}"
    text = f"broken: {{eager_mode: {mode % 'broken'}}}\ngood: {{eager_mode: {mode % 'echo'}}}\n"
    (terminal.folder / "suite.yaml").write_text(text)
    words = ("--protocol", "rest", "--repeats", "1", "--warmup", "0", "--report", "results")
    ended = terminal.torchd("bench", "--suite", "suite.yaml", *words)
    assert ended.code == 1, ended.out + ended.err
    assert "eager_mode_broken, cpu, workers/batch 1/1" in ended.out
    assert "broken.mar could not be served" in ended.out
    assert [point.clients for point in read_points(terminal.folder / "results" / "bench.json")] == [1, 2]


def test_what_cannot_be_asked_together_is_refused(terminal: Terminal) -> None:
    for words, said in (
        ((), "it takes the name of a model or an archive, or --suite FILE"),
        (("echo",), "nothing to ask echo: say with --input FILE what is sent"),
        (("--suite", "suite.yaml", "--workers", "2"), "--suite says what is measured"),
        (("echo", "-T", "sample.txt", "--report", "sample.txt"), "--report sample.txt: File exists"),
        (("--suite", "gone.yaml"), "cannot read gone.yaml: No such file or directory"),
    ):
        ended = terminal.torchd("bench", *words)
        assert (ended.code, said in ended.err) == (2, True), ended.err
