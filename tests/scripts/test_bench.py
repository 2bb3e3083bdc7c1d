"""scripts/bench: its smallest setting end to end, and what it decides; no figure is judged here."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from benchmarks import models, table
from benchmarks.answers import Difference, compare
from benchmarks.cases import CASES, FAMILIES
from benchmarks.contest import BARE, TORCHD, TORCHSERVE, TUNED, Outcome, Row
from benchmarks.servers import on_cores
from benchmarks.torchserve import NoTorchServe, environment

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("server", "workers", "clients", "archiver", "protos", "scripts")
MACHINE = {
    "cpu": "AMD EPYC",
    "cpu_flags": ["avx512_bf16"],
    "cores": 2,
    "python": "3.11.7",
    "torch": "2.13.0",
    "date": "2026-11-21",
    "command": "scripts/bench --only noop",
}


def row(server: str, throughput: float, protocol: str = "rest", **more: object) -> Row:
    return Row("no-op", protocol, server, throughput, (throughput,), **more)  # type: ignore[arg-type]


@pytest.mark.timeout(300)
def test_the_smallest_setting_runs_end_to_end(tmp_path: Path) -> None:
    """A daemon, both bare servers, both protocols, every file."""
    files = {name: tmp_path / f"out.{name}" for name in ("json", "markdown")}
    words = ["--only", "noop", "--seconds", "0.3", "--rounds", "1", "--without", "torchserve"]
    words += [
        "--workspace",
        str(tmp_path),
        *(word for name, path in files.items() for word in (f"--{name}", str(path))),
    ]
    path = os.pathsep.join(str(ROOT / source) for source in SOURCES)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.command", *words],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    measured = json.loads(files["json"].read_text())
    expected = {(case.name, over, name) for case in CASES[:2] for over in ("rest", "grpc") for name in (TORCHD, BARE)}
    assert {(one["case"], one["protocol"], one["server"]) for one in measured["rows"]} == expected
    for one in measured["rows"]:
        assert one["errors"] == 0
        assert one["throughput"] > 0
        assert one["p99_ms"] >= one["p50_ms"] > 0
        assert (one["of_bare"] > 0) == (one["server"] == TORCHD)
    assert "| no-op | REST | torchd |" in files["markdown"].read_text()
    assert "bare grpc.aio" in done.stdout


def test_only_torchd_is_set_against_the_others() -> None:
    rows = [row(TORCHD, 900.0), row(TORCHSERVE, 300.0), row(BARE, 1000.0), row(TORCHSERVE, 100.0, "grpc")]
    assert [table.ratio(one, rows, TORCHSERVE) for one in rows] == [3.0, 0.0, 0.0, 0.0]
    assert table.ratio(rows[0], rows, BARE) == 0.9
    assert table.ratio(row(TUNED, 50.0, "grpc"), rows, TORCHSERVE) == 0.5


def test_a_bare_model_is_the_ceiling_of_both_protocols() -> None:
    rows = [row(TORCHD, 8.0), row(TORCHD, 7.0, "grpc"), row(BARE, 10.0, "")]
    assert [table.ratio(one, rows, BARE) for one in rows] == [0.8, 0.7, 0.0]
    assert table.cells(rows[2], rows)[2] == "bare model"


def test_errors_and_clients_at_their_limit_are_told() -> None:
    failing = row(TORCHSERVE, 10.0, errors=3, first_error="HTTP 503")
    assert table.cells(failing, [failing])[2] == "TorchServe (3 errors: HTTP 503)"
    busy = row(BARE, 70_000.0, client_share=0.99)
    assert "clients' core was full" in table.cells(busy, [busy])[2]


def test_the_page_names_date_machine_flags_and_command() -> None:
    outcome = Outcome((row(TORCHD, 900.0),), Difference(0.001, 0.1, 1.0, 256))
    page = table.markdown([outcome], MACHINE)
    for said in (
        "`scripts/bench --only noop`",
        "2026-11-21",
        "AMD EPYC",
        "avx512_bf16",
        "| no-op | REST | torchd | 900 |",
    ):
        assert said in page
    assert "0.010 of their standard deviation" in page
    assert "as is allowed" in page
    for beyond in (Difference(0.006, 0.1, 1.0, 256), Difference(0.001, 0.1, 0.98, 256)):
        assert "MORE than is allowed" in table.markdown([Outcome(outcome.rows, beyond)], MACHINE)


def test_texts_of_mixed_length_are_most_of_them_short() -> None:
    lengths = [len(json.loads(body)["text"].split()) + 2 for body in models.mixed_texts()]
    assert (min(lengths), max(lengths)) == (8, 128)
    assert statistics.median(lengths) < statistics.mean(lengths) < 64
    assert models.mixed_texts() == models.mixed_texts()
    assert {len(json.loads(body)["text"].split()) + 2 for body in models.even_texts()} == {128}


def test_a_text_has_the_tokens_that_were_asked_for() -> None:
    assert len(json.loads(models.text_body(10, random.Random(0)))["text"].split()) == 8


def test_answers_are_compared_score_by_score() -> None:
    theirs = {b"a": [0.0, 10.0], b"b": [1.0, 5.0]}
    ours = {b"a": [0.1, 10.0], b"b": [1.0, 0.8]}
    with serving(ours) as one, serving(theirs) as other:
        found = compare(one, other, "/predictions/bert", [b"a", b"b"])
    assert found.largest == pytest.approx(4.2)
    assert found.deviation == statistics.stdev([0.0, 10.0, 1.0, 5.0])
    assert (found.equal_top1, found.answers) == (0.5, 2)
    assert not found.is_tolerable


class serving:
    """A server that answers these bodies with these scores."""

    def __init__(self, scores: dict[bytes, list[float]]) -> None:
        class Answers(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = json.dumps({"logits": scores[body]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self._server.daemon_threads = True

    def __enter__(self) -> str:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return f"127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_without_java_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoTorchServe, match="no java on PATH"):
        environment(tmp_path)
    old = tmp_path / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    old.chmod(0o755)
    with pytest.raises(NoTorchServe, match="needs Java 17"):
        environment(tmp_path)


def test_what_is_started_elsewhere_runs_on_the_cores_named() -> None:
    before = os.sched_getaffinity(0)
    with on_cores({min(before)}):
        seen = subprocess.check_output([sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"], text=True)
    assert seen.strip() == str({min(before)})
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("words", [("--only", "nothing"), ("--protocols", "ftp"), ("--without", "")])
def test_what_it_does_not_know_is_refused_by_name(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.command import main

    with pytest.raises(SystemExit):
        main(list(words))
    assert "it may name" in capsys.readouterr().err


def test_its_help_names_every_family() -> None:
    said = subprocess.run(
        [str(ROOT / "scripts" / "bench"), "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(family in said for family in FAMILIES)
