"""scripts/bench_gpu.py on the CPU, end to end, and what it decides; no figure is judged here."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from benchmarks.gpu import report
from benchmarks.gpu.clients import Load
from benchmarks.gpu.gpu_memory import memory_by_process
from benchmarks.gpu.models import MODELS, OPTIMIZATIONS, QUICK, Setup, config_of
from benchmarks.gpu.report import COLUMNS, Row
from rich.console import Console

pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "bench_gpu.py"
SOURCES = ("server", "workers", "clients", "archiver", "protos", "scripts")
ROW = Row("bert", "NVIDIA H200", 16, 1000, 1, 8, 512, "fp16", 2000.0, 1500.0, 9.5, 12.0, 900)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(ROOT / source) for source in SOURCES)
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "80", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.mark.timeout(520)
def test_models_are_measured_bare_and_served(tmp_path: Path) -> None:
    """The whole of it with tiny models: the daemon, the clients, every file."""
    ways = ("fp32", "bf16-compiled")
    small = ("--batch-sizes", "3", "--requests", "6", "--bare-seconds", "0.01", "--compile-backend", "eager")
    files = {name: tmp_path / f"out.{name}" for name in ("json", "csv", "markdown")}
    into = [word for name, path in files.items() for word in (f"--{name}", path)]
    done = run("--quick", "--device", "cpu", "--models", "bert", "--optimizations", *ways, *small, *into)
    assert done.returncode == 0, done.stderr + done.stdout
    measured = json.loads(files["json"].read_text())
    rows = measured["rows"]
    assert [(row["optimization"], row["batch_size"]) for row in rows] == [(way, 3) for way in ways]
    for row in rows:
        assert row["failure"] == ""
        assert row["device"] == "CPU"
        assert row["ratio"] > 0
        assert row["p99_ms"] >= row["p50_ms"] > 0
        assert (row["workers"], row["requests"], row["concurrency"]) == (1, 6, 2 * row["batch_size"])
    assert measured["setup"]["device_type"] == "cpu"
    with files["csv"].open() as text:
        assert [row["optimization"] for row in csv.DictReader(text)] == [row["optimization"] for row in rows]
    assert len(files["markdown"].read_text().splitlines()) == 2 + len(rows)
    assert "bf16-compiled" in done.stdout


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_gpu"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("device", "has_cuda", "device_type", "ways"),
    [
        ("auto", True, "gpu", ["fp32", "fp16", "bf16", "fp32-compiled", "fp16-compiled"]),
        ("cuda", True, "gpu", ["fp32", "fp16", "bf16", "fp32-compiled", "fp16-compiled"]),
        ("auto", False, "cpu", ["fp32", "bf16", "fp32-compiled"]),
        ("cpu", True, "cpu", ["fp32", "bf16", "fp32-compiled"]),
    ],
)
def test_the_device_decides_where_and_how(
    script: ModuleType, device: str, has_cuda: bool, device_type: str, ways: list[str]
) -> None:
    plan = script._plan(script._parser().parse_args(["--device", device]), has_cuda)
    assert plan.setup.device_type == device_type
    assert [way.name for way in plan.optimizations] == ways
    assert plan.steps == 2 * len(ways) * (1 + 2 * 5)
    assert (plan.in_flight(8, 2), replace(plan, concurrency=10).in_flight(8, 2)) == (32, 10)


def test_a_gpu_that_is_not_there_is_said(script: ModuleType) -> None:
    with pytest.raises(script.NoDevice, match="torch sees no CUDA device here; --device cpu measures the same"):
        script._plan(script._parser().parse_args(["--device", "cuda"]), has_cuda=False)


def test_a_model_that_runs_elsewhere_than_asked_is_no_measurement(script: ModuleType) -> None:
    script._check_device("cuda", Setup("gpu", "inductor", True))
    with pytest.raises(script.NoDevice, match="served on cuda, and its worker has it on cpu"):
        script._check_device("cpu", Setup("gpu", "inductor", True))


def test_every_way_becomes_a_model_config() -> None:
    setup = Setup("gpu", "inductor", pin_memory=False)
    plain = config_of(MODELS["bert"], OPTIMIZATIONS["fp16"], setup)
    assert (plain["deviceType"], plain["deviceIds"]) == ("gpu", [0])
    assert plain["optimize"] == {"dtype": "float16", "pin_memory": False}
    assert "deviceIds" not in config_of(MODELS["bert"], OPTIMIZATIONS["fp16"], replace(setup, device_type="cpu"))
    assert "pt2" not in plain
    compiled = config_of(MODELS["vit"], OPTIMIZATIONS["bf16-compiled"], setup)
    assert compiled["pt2"] == {"compile": {"enable": True, "backend": "inductor"}}
    assert compiled["handler"] == {"dtype": "uint8", "shape": [3, 224, 224]}


@pytest.mark.parametrize("model", [*MODELS.values(), *QUICK.values()], ids=lambda model: f"{model.name} {model.shape}")
def test_a_request_has_the_bytes_its_model_takes(model: object) -> None:
    assert len(model.payload()) == model.payload_bytes  # type: ignore[attr-defined]
    assert model.payload() == model.payload()  # type: ignore[attr-defined]


# Each model in a process of its own, as its files are called alike; torch is loaded once for all of them.
MEASURE_ALL = """
import os, sys
from pathlib import Path
import torch, transformers
from benchmarks.gpu.bare import measure
from benchmarks.gpu.models import OPTIMIZATIONS, QUICK, Setup, write_model

for name, model in QUICK.items():
    child = os.fork()
    if child == 0:
        source = write_model(Path(sys.argv[1]), model, OPTIMIZATIONS["bf16"], Setup("cpu", "eager", True))
        found = measure(source, model.payload(), (1, 2), 0.01)
        assert found.device == "CPU" and list(found.throughput) == [1, 2] and all(found.throughput.values()), found
        print(name, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_every_model_answers_in_every_type(tmp_path: Path) -> None:
    """As the bare loop loads them: sizes.json, the handler, the type, every size of batch."""
    path = os.pathsep.join(str(ROOT / source) for source in SOURCES)
    variables = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE_ALL, str(tmp_path)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=110, check=False)
    assert done.stdout.split() == list(QUICK), done.stderr


def test_nvidia_smi_tells_the_memory_of_processes() -> None:
    """What it cannot tell, as under MIG, is left out; a process on two GPUs has both."""
    assert memory_by_process("101, 1024\n102, 512\n101, 6\n103, [N/A]\n\nNo devices were found\n") == {
        101: 1030,
        102: 512,
    }


def test_the_table_has_the_columns_of_torchserves() -> None:
    """Seed 003, then ours."""
    assert COLUMNS[1:10] == (
        "Device",
        "Concurrency",
        "#Requests",
        "#workers",
        "Batch size",
        "Payload",
        "Optimization",
        "Throughput",
        "Latency P99 (ms)",
    )
    cells = dict(zip(COLUMNS, ROW.cells(), strict=True))
    assert (cells["Payload"], cells["Served/bare"], cells["MB/worker"]) == ("512 B", "0.75", "900")
    failed = replace(ROW, failure="OutOfMemory: no")
    assert dict(zip(COLUMNS, failed.cells(), strict=True))["Throughput"] == "failed"


def test_the_tables_fit_into_a_terminal() -> None:
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    for table in report.tables([ROW, replace(ROW, model="vit", optimization="fp16-compiled", memory_mb=12345)]):
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert "bert on NVIDIA H200, 512 B per request" in text
    assert "fp16-compiled" in text


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib").use("agg")
    report.plot([ROW, replace(ROW, batch_size=16), replace(ROW, failure="no")], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_percentiles_are_of_the_sorted_latencies() -> None:
    load = Load(2.0, [number / 1000 for number in range(1, 101)])
    assert (load.throughput, load.percentile_ms(0.5), load.percentile_ms(0.99)) == (50.0, 51.0, 100.0)
    assert Load(1.0, [0.25]).percentile_ms(0.99) == 250.0
