"""docs/large_models.md as it is typed, and the handlers that it shows, on a machine without a GPU."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faults.arena import worker_pids
from harness.byte_models import llama, save
from harness.commands import ROOT, environment, install_commands
from harness.daemon import Daemon, free_ports
from harness.eventually import eventually
from harness.surfaces import GrpcSurface

from torchd_archiver.packing import PackRequest, pack

PAGE = (ROOT / "docs" / "large_models.md").read_text()
PORTS = ("grpc-inference", "grpc-management", "inference", "management", "metrics")
# Ranks load torch and transformers, on a machine with other things to do.
LOADING = 150.0
RANKS: dict[str, Any] = {"minWorkers": 1, "maxWorkers": 1, "deviceType": "cpu", "torchrun": {"nproc-per-node": 2}}
PIPPY = {"chunks": 1, "input_names": ["input_ids"], "model_type": "HF", "rpc_timeout": 60, "num_worker_threads": 1}


@dataclass(frozen=True, slots=True)
class Walk:
    """What each `bash` block has printed, from the first to the last."""

    model: str
    packed: str
    started: str
    asked: str
    looked: str
    killed: str
    scaled: str
    staged: str
    stopped: str


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """Every `bash` block in one shell; only the ports are this test's."""
    folder = tmp_path_factory.mktemp("walk")
    ports = dict(zip(PORTS, free_ports(5), strict=True))
    flags = " ".join(f"--{name}-port {port}" for name, port in ports.items())
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    program = "set -eo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
    program += "".join(f"{block}\necho; echo '== end of a block'\n" for block in blocks)
    assert program.count("torchd serve ") == 1
    program = program.replace("torchd serve ", f"torchd serve {flags} ").replace(":8080/", f":{ports['inference']}/")
    (folder / "scratch").mkdir()
    variables = environment(install_commands(folder / "bin"), folder / "scratch")
    variables |= {"XDG_RUNTIME_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    log = folder / "terminal.log"
    with log.open("w") as output:
        ended = subprocess.run(
            ["bash", "-c", program], cwd=folder, env=variables, stdout=output, stderr=subprocess.STDOUT, timeout=380
        )
    daemon_log = folder / "torchd.log"
    assert ended.returncode == 0, log.read_text() + (daemon_log.read_text() if daemon_log.is_file() else "")
    *printed, _ = log.read_text().split("== end of a block\n")
    return Walk(*printed)


@pytest.mark.timeout(400)
@pytest.mark.needs("curl")
def test_the_page_as_typed_serves_a_model_split_both_ways(walk: Walk) -> None:
    [said] = re.findall(r"^in one piece it says (.*)$", walk.model, re.MULTILINE)
    assert len(set(re.findall(r"model-0000\d-of-00004.safetensors", walk.model))) == 4
    assert "registered tiny 1.0: 1 of 1 workers ready" in walk.started
    answers = [json.loads(text) for text in re.findall(r'^  "generated_text": (".*"),$', walk.asked, re.MULTILINE)]
    assert [repr(answer) for answer in answers] == [said, said]
    assert "rank 1" in walk.looked
    assert "no cuda: " in walk.looked
    assert "loading: 100 %" in walk.looked
    assert "rank 1: the worker process was killed by SIGKILL" in walk.killed
    assert json.dumps(ast.literal_eval(said)) in walk.killed
    assert re.search(r"workers +2/2 ready", walk.scaled)
    assert "registered tiny 2.0: 1 of 1 workers ready" in walk.staged
    for printed in (walk.asked, walk.staged):
        pieces = [json.loads(line) for line in re.findall(r'{"text".*}', printed)]
        assert len(pieces) > 2
        assert repr("".join(piece["text"] for piece in pieces)) == said
        assert pieces[-1]["finish_reason"] == "length"


def python_blocks() -> dict[str, str]:
    """The page's `python` blocks by the name in their first line."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return {block.split()[1].removesuffix(".py"): block for block in blocks}


@pytest.mark.timeout(400)
def test_the_handlers_of_the_page_answer(tmp_path: Path) -> None:
    """Written as they stand there; the checkpoint is one that the page's own script has converted."""
    blocks = python_blocks()
    save(llama(), tmp_path / "checkpoint")
    store = tmp_path / "store"
    (tmp_path / "convert.py").write_text(blocks.pop("convert"))
    command = [sys.executable, "convert.py", "checkpoint", "converted"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120, env=environment(tmp_path, tmp_path))
    kinds: dict[str, dict[str, Any]] = {
        "own_tp": {**RANKS, "parallelType": "tp"},
        "own_pp": {**RANKS, "parallelType": "pp"},
        "own_checkpoint": {"minWorkers": 1, "maxWorkers": 1, "deviceType": "cpu"},
        "own_pippy": {**RANKS, "parallelType": "pp", "pippy": PIPPY},
    }
    assert blocks.keys() == kinds.keys()
    store.mkdir()
    for name, block in blocks.items():
        handler, config = tmp_path / f"{name}.py", tmp_path / f"{name}.yaml"
        handler.write_text(block)
        config.write_text(json.dumps(kinds[name]))  # JSON is YAML
        reads = name in ("own_checkpoint", "own_pippy")
        files = (str(tmp_path / "converted"),) if reads else ()
        pack(PackRequest(name, "1.0", str(handler), extra_files=files, config_file=config, export_path=store))
    models = tuple(f"{name}={name}.mar" for name in kinds)
    with Daemon(tmp_path, store=store, models=models) as daemon, GrpcSurface(daemon) as client:
        for name in kinds:
            eventually(partial(worker_pids, client, name), within=LOADING)
        answers = {
            name: client.predict(name, b"[1, 2, 3, 4]" if name in ("own_tp", "own_pp") else b"to be") for name in kinds
        }
    assert {name: answer.error for name, answer in answers.items()} == dict.fromkeys(kinds)
    assert answers["own_tp"].json() == [2.0, 3.0, 4.0, 1.0]
    assert answers["own_pp"].json() == [11.0, 21.0, 31.0, 41.0]
    assert 0 <= int(answers["own_checkpoint"].body) < 260
    assert answers["own_pippy"].body.startswith(b"to be")
