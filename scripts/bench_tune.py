#!/usr/bin/env python3
"""Tunes the quickstart's model and BERT-base with `torchd tune`, then measures the default and what it wrote with
`torchd bench`, each from its archive: what a search found must come out again.

Takes some 12 minutes a model on 2 cores. Results lie in FOLDER/tune-paraphrase and FOLDER/tune-bert.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.models import Serving, make, mixed_texts
from demo.paraphrase.pack import pack as pack_paraphrase
from demo.paraphrase.pairs import choosing_pairs, demo_pairs

TORCHD = (sys.executable, "-m", "torchd_server.cli")
# With 64 inputs the workers' own check judges the top-1 as well.
TEXTS = 64


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and the bound it is tuned for."""

    name: str
    slo: str


SUBJECTS = (Subject("paraphrase", "p99=100ms"), Subject("bert", "p99=1s"))


def main() -> int:
    """Prints what `torchd tune` prints, and below it both configurations under the same load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where archives, inputs and results go")
    parser.add_argument("--only", choices=[one.name for one in SUBJECTS], help="one of the models")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds of each search (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement afterwards (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="forget what an interrupted search found")
    arguments = parser.parse_args()
    for subject in SUBJECTS:
        if arguments.only in (None, subject.name):
            _prove(subject, arguments.folder.absolute(), arguments.budget, arguments.seconds, arguments.fresh)
    return 0


def _prove(subject: Subject, folder: Path, budget: float, seconds: float, is_fresh: bool) -> None:
    archive, inputs = folder / f"{subject.name}.mar", folder / f"{subject.name}-inputs"
    if not archive.exists():
        _make(subject.name, folder, inputs)
    tuned, output = folder / f"{subject.name}-tuned.mar", folder / f"tune-{subject.name}"
    words = ["--input", inputs, "--slo", subject.slo, "--output", output, "--archive", tuned, "--budget", budget]
    _torchd("tune", archive, *words, *(["--fresh"] if is_fresh else []))
    clients = json.loads((output / "trials.json").read_text())["confirmed"][-1]["runs"][-1]["clients"]
    files = [word for file in sorted(inputs.iterdir()) for word in ("-T", f"data={file}")]
    for one in (archive, tuned):
        _torchd("bench", one, *files, "--protocol", "grpc", "--clients", clients, "--seconds", seconds, "--repeats", 3)


def _make(name: str, folder: Path, inputs: Path) -> None:
    """The archive, with no setting of its own but what every archive has, and a file for each input."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(inputs, ignore_errors=True)
    inputs.mkdir()
    if name == "bert":
        make(name, folder, Serving())
        bodies = mixed_texts(TEXTS)
    else:
        pack_paraphrase(folder)
        bodies = [pair.body() for pair in (*demo_pairs(), *choosing_pairs())]
    for number, body in enumerate(bodies):
        (inputs / f"{number:03}.json").write_bytes(body)


def _torchd(*words: object) -> None:
    command: Sequence[str] = [*TORCHD, *map(str, words)]
    print("$ torchd", *(word for word in command[3:] if not word.startswith("data=")), flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
