"""`optimize:` in a real worker process: threads, envelopes, functions, and memory that workers share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torchd_protos.frames import Loaded, LoadFailed, Settings

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

THREADS = """
import torch


class Handler:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [[torch.get_num_threads(), torch.get_num_interop_threads()]] * len(data)
"""
FUNCTION = """
import json

import torch


class Service:
    def initialize(self):
        self.model = torch.nn.Linear(2, 2)


_service = Service()


def handle(data, context):
    if data is None:
        return _service.initialize()
    return _service.model(torch.tensor([json.loads(row["body"]) for row in data])).tolist()
"""
MODEL = """
import torch


class Wide(torch.nn.Linear):
    def __init__(self):
        super().__init__(2048, 2048, bias=False)
"""
Start = Callable[[Path], Any]


def report_of(loaded: Any) -> dict[str, Any]:
    assert isinstance(loaded, Loaded), loaded
    report: dict[str, Any] = json.loads(loaded.optimization_json)
    return report


def test_a_number_of_threads_is_for_good(start: Start, tmp_path: Path) -> None:
    """The share that the daemon gives a worker may change; what the archive's author has measured does not."""
    (tmp_path / "handler.py").write_text(THREADS)
    worker = start(tmp_path)
    config = json.dumps({"optimize": {"threads": 3, "interop_threads": 2}})
    report = report_of(worker.load(threads=1, config_json=config))
    assert [option["applied"] for option in report["options"]] == [True, True]
    worker.send(Settings(threads=2))
    assert json.loads(bytes(worker.ask(b"").body)) == [3, 2]


def test_the_model_of_a_function_is_its_modules_service(start: Start, tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text(FUNCTION)
    (tmp_path / "samples.jsonl").write_text("[1.0, 2]\n[3.5, 4]\n[-1.0, 0]\n")
    config = json.dumps({"optimize": {"dtype": "bf16", "samples": "samples.jsonl"}})
    (option,) = report_of(start(tmp_path).load("handler.py:handle", config_json=config))["options"]
    assert option["difference"]["inputs"] == 3


def test_what_cannot_be_had_fails_the_load_in_one_sentence(start: Start, tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text(THREADS)
    refusal = start(tmp_path).load(config_json=json.dumps({"optimize": {"dtype": "bf16"}}))
    assert isinstance(refusal, LoadFailed)
    assert refusal.message == (
        "CannotOptimize: optimize asks for dtype, but the handler has no self.model once it is initialized"
    )


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_two_workers_have_one_copy_of_the_weights(start: Start, tmp_path: Path, name: str) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    weights = {"weight": torch.randn(2048, 2048)}
    save_file(weights, tmp_path / name) if name.endswith("tensors") else torch.save(weights, tmp_path / name)
    files = {"modelName": "wide", "handler": "base_handler", "modelFile": "model.py", "serializedFile": name}
    workers = [start(tmp_path) for _ in range(2)]
    for worker in workers:
        assert worker.load("base_handler", manifest_json=json.dumps({"model": files})) == Loaded()
        answer = json.loads(bytes(worker.ask(json.dumps([1.0] * 2048).encode()).body))
        assert torch.allclose(torch.tensor(answer), weights["weight"].sum(1), atol=1e-2)
    for worker in workers:
        counts = mapped(worker.process.pid, tmp_path / name)
        assert counts["Rss"] >= 16 * 1024, "all of it is there"
        assert counts["Anonymous"] == 0, "and none of it is this worker's own"
        assert counts["Pss"] <= 9 * 1024, "half of it counts"


def mapped(pid: int, path: Path) -> dict[str, int]:
    """The kernel's counts, in kB, for what a process has mapped of a file."""
    counts: dict[str, int] = {}
    smaps = Path(f"/proc/{pid}/smaps").read_text()
    for area in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", smaps, flags=re.MULTILINE):
        if str(path) in area:
            for name, count in re.findall(r"^(\w+): +(\d+) kB", area, re.MULTILINE):
                counts[name] = counts.get(name, 0) + int(count)
    return counts
