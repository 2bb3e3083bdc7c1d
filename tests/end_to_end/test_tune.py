"""`torchd tune` as a user types it: a tiny torch model, a real daemon, a space of a few settings."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import ctrl_c
from harness.commands import environment, install_commands
from harness.daemon import Daemon
from harness.surfaces import GrpcSurface

from torchd_archiver.packing import PackRequest, pack

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

OWN = "# Ours.\nhandler:\n  greeting: hello  # said by nobody\n"
# A batch takes 50 ms however large it is. In bfloat16 a thousand and a third is a thousand.
MODEL = """\
import time

import torch


class Scores(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = torch.nn.Linear(2, 2)
        with torch.no_grad():
            self.scores.weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
            self.scores.bias.fill_(1000.0)

    def forward(self, x):
        time.sleep(0.05)
        return self.scores(x) - 1000
"""
HANDLER = """\
import json

import torch
from ts.torch_handler.base_handler import BaseHandler


class Handler(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([json.loads(row.get("data") or row["body"]) for row in data], dtype=torch.float32)

    def postprocess(self, data):
        return data.tolist()
"""
SPACE = ["--space", "workers=1 threads=0 batch_size=1,4 batch_delay=100 compile=own"]


def tune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**command(folder, *arguments), capture_output=True, timeout=150)


def command(folder: Path, *arguments: str) -> dict[str, Any]:
    (folder / "scratch").mkdir(exist_ok=True)
    words = ["torchd", "tune", "scores.mar", "--input", "samples.jsonl", "--slo", "p99=20s", "--trial-seconds", "0.5"]
    return {
        "args": [str(folder / "bin" / words[0]), *words[1:], *arguments],
        "cwd": folder,
        "env": environment(install_commands(folder / "bin"), folder / "scratch"),
        "text": True,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An archive and some inputs for it."""
    for name, text in (("model.py", MODEL), ("handler.py", HANDLER), ("model-config.yaml", OWN)):
        (tmp_path / name).write_text(text)
    (tmp_path / "samples.jsonl").write_text("[0.1, 0.4]\n[0.9, 0.2]\n[0.5, 0.6]\n")
    pack(
        PackRequest(
            "scores",
            "1.0",
            str(tmp_path / "handler.py"),
            model_file=tmp_path / "model.py",
            config_file=tmp_path / "model-config.yaml",
            export_path=tmp_path,
        )
    )
    return tmp_path


@pytest.mark.timeout(240)
def test_a_search_finds_the_batch_refuses_what_differs_and_tells_what_does_not_load(folder: Path) -> None:
    extra = ["--space", "dtype=own,bfloat16 quantize=int3", "--archive", "tuned.mar", "--output", "found"]
    ended = tune(folder, *SPACE, *extra)
    assert ended.returncode == 0, ended.stderr
    shown = " ".join(ended.stdout.replace("|", " ").split())
    assert re.search(r"Best: 1 worker, batch 4 within 100 ms: .* times the default's", shown), ended.stdout
    assert "outputs differ" in shown
    assert "did not load" in shown
    assert "int3" in shown
    trials = json.loads((folder / "found" / "trials.json").read_text())["trials"]
    fates = {trial["setting"]["dtype"] + trial["setting"]["quantize"]: trial["fate"] for trial in trials}
    assert fates == {"": "measured", "bfloat16": "outputs differ", "int3": "did not load"}
    written = (folder / "found" / "model-config.yaml").read_text()
    assert written == OWN + "batchSize: 4\n"
    assert (folder / "found" / "tune.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (folder / "found").iterdir()) == [
        "model-config.yaml",
        "trials.json",
        "tune.png",
    ]
    # Served without the search, the new archive is what was found: the batch, and the own key that was there.
    with Daemon(folder / "daemon", store=folder, models=["scores=tuned.mar"]) as daemon:
        [described] = GrpcSurface(daemon).describe("scores").json()
    assert described["batchSize"] == 4


@pytest.mark.timeout(240)
def test_an_interrupted_search_goes_on(folder: Path) -> None:
    asked = command(folder, *SPACE, "--json")
    searching = subprocess.Popen(**asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=ctrl_c.heard)
    assert searching.stderr is not None
    first = searching.stderr.readline()
    assert first.startswith("1 worker, batch 1: "), first
    searching.send_signal(signal.SIGINT)
    _, said = searching.communicate(timeout=60)
    assert searching.returncode == 130
    assert "interrupted; the same command goes on" in said
    known = json.loads((folder / "tune-scores" / "trials.json").read_text())["trials"]
    assert known
    ended = tune(folder, *SPACE, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads((folder / "tune-scores" / "trials.json").read_text())["trials"][: len(known)] == known
    found = json.loads(ended.stdout)
    assert yaml.safe_load((folder / "tune-scores" / "model-config.yaml").read_text())["batchSize"] == 4
    assert found["is_better"]
    assert found["setting"]["batch_size"] == 4
    other = tune(folder, *SPACE, "--slo", "p50=1s")
    assert other.returncode == 1
    assert "its slo differ" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--slo", "fast"], "--slo 'fast' is no bound"),
        (["--space", "cats=3"], "--space 'cats=3' is no dimension"),
        (["--input", "nothing.json"], "nothing.json cannot be read"),
    ],
)
def test_what_cannot_be_understood_is_said_in_a_line(folder: Path, arguments: list[str], said: str) -> None:
    ended = tune(folder, *arguments)
    assert ended.returncode == 1
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
