"""What memory a load takes: anonymous memory of the loading process, watched from outside while it loads.

Mapped pages of the files are not counted: the kernel takes them back when it needs them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).parent / "programs" / "load_checkpoint.py"
LAYERS_A_SHARD, SHARDS = 2, 6
SHARD_BYTES = LAYERS_A_SHARD * (2048 * 3072 + 2048) * 4
# What the interpreter, the allocator and the tables of tensors take beside the tensors.
SLACK_BYTES = 8 << 20
INTERVAL_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Load:
    """What one load took at its worst beyond what the process had before, and what it kept, in bytes."""

    peak: int
    kept: int

    @property
    def bound(self) -> float:
        """What is promised."""
        return 1.5 * SHARD_BYTES + self.kept + SLACK_BYTES


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The same weights as safetensors and as torch.save's files."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("safetensors", "bin")}
    weights: dict[str, dict[str, str]] = {kind: {} for kind in folders}
    for shard in range(SHARDS):
        layers = range(shard * LAYERS_A_SHARD, (shard + 1) * LAYERS_A_SHARD)
        tensors = {f"{layer}.weight": torch.full((2048, 3072), layer + 1.0) for layer in layers}
        tensors |= {f"{layer}.bias": torch.ones(2048) for layer in layers}
        for kind, folder in folders.items():
            path = folder / f"shard-{shard}.{kind}"
            save_file(tensors, path) if kind == "safetensors" else torch.save(tensors, path)
            weights[kind].update(dict.fromkeys(tensors, path.name))
    indexes = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}
    for kind, folder in folders.items():
        (folder / indexes[kind]).write_text(json.dumps({"weight_map": weights[kind]}))
    yield folders
    for folder in folders.values():
        for path in folder.iterdir():
            path.unlink()  # pytest keeps the folders of the last three runs, which are large


def load(folder: Path, way: str) -> Load:
    """Runs the program and watches it."""
    folders = os.pathsep.join(str(ROOT / name) for name in ("workers", "protos"))
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), way],
        env={**os.environ, "PYTHONPATH": folders, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            before = anonymous_bytes(process.pid)
            over = threading.Event()
            seen = [before]
            watcher = threading.Thread(target=watch, args=(process.pid, over, seen))
            watcher.start()
            process.stdin.write("go\n")
            process.stdin.flush()
            kept = process.stdout.readline()
            over.set()
            watcher.join()
            assert process.wait(60) == 0
        finally:
            process.kill()
    return Load(max(seen) - before, int(kept))


def watch(pid: int, over: threading.Event, seen: list[int]) -> None:
    while not over.wait(INTERVAL_SECONDS):
        seen.append(anonymous_bytes(pid))


def anonymous_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), 0)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("way", ["copied", "stage", "rank", "cast"])
def test_a_load_takes_a_shard_and_a_half_and_what_is_kept(way: str, kind: str, checkpoints: dict[str, Path]) -> None:
    measured = load(checkpoints[kind], way)
    assert measured.peak <= measured.bound, f"{measured.peak >> 20} MiB, promised are {int(measured.bound) >> 20}"
    assert measured.peak >= 0.95 * measured.kept, "what is kept was not seen: nothing was measured"


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_views_of_the_files_take_nothing(kind: str, checkpoints: dict[str, Path]) -> None:
    """So that several workers of a host share the pages."""
    assert load(checkpoints[kind], "mapped").peak < SLACK_BYTES


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_the_measure_sees_a_load_that_takes_too_much(kind: str, checkpoints: dict[str, Path]) -> None:
    """The control: without it the test above might pass for any load."""
    measured = load(checkpoints[kind], "naive")
    assert measured.peak > measured.bound
