"""`torchd bench` as a user types it, against real daemons; docs/bench.md as it is typed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from harness import ctrl_c
from harness.archives import pack_model
from harness.commands import ROOT, environment, install_commands
from harness.daemon import Daemon, free_ports
from harness.eventually import eventually
from harness.surfaces import RestSurface

from torchd_clients.bench.measurement import Point
from torchd_clients.bench.points import read_about, read_points

PAGE = (ROOT / "docs" / "bench.md").read_text()
PORTS = ("grpc-inference", "grpc-management", "inference", "management", "metrics")


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command printed and left with."""

    code: int
    out: str
    err: str


class Terminal:
    """A folder in which commands are typed; daemons of the test are found there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scratch").mkdir()
        (folder / "sample.txt").write_text("hello")
        self.variables = environment(install_commands(folder / "commands"), folder / "scratch")
        self.variables |= {"XDG_RUNTIME_DIR": str(folder)}

    def bench(self, *words: str) -> Ended:
        """`torchd bench` with a sample and short runs unless told otherwise."""
        with self.started(*words) as process:
            out, err = process.communicate(timeout=100)
        return Ended(process.returncode, out, err)

    def started(self, *words: str) -> subprocess.Popen[str]:
        """The same, running."""
        command = [str(self.folder / "commands" / "torchd"), "bench", *words, "-T", "sample.txt"]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=ctrl_c.heard,
        )

    def points(self, *words: str) -> tuple[Point, ...]:
        """What `torchd bench` measured."""
        ended = self.bench(*words, "--json", "run.json")
        assert ended.code == 0, ended.out + ended.err
        return read_points(self.folder / "run.json")


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path)


@pytest.fixture
def daemon(terminal: Terminal) -> Iterator[Daemon]:
    """A daemon with tokens that a command finds by itself: an echo on one worker, batches of up to 4."""
    model = pack_model(terminal.folder, "echo", minWorkers=1, batchSize=4, maxBatchDelay=2)
    run_dir = terminal.folder / "torchd" / "own"
    for private in (run_dir.parent, run_dir):
        private.mkdir(mode=0o700)
    with Daemon(
        terminal.folder, store=terminal.folder / "store", models=[model], tokens=True, run_dir=run_dir
    ) as daemon:
        yield daemon


def outcomes(daemon: Daemon) -> dict[str, float]:
    """How many requests the daemon counted, by outcome."""
    with RestSurface(daemon) as rest:
        page = rest.request("GET", "/metrics", port="metrics").body.decode()
    return {
        outcome: float(count)
        for outcome, count in re.findall(r'torchd_requests_total\{.*outcome="(\w+)".*\} (\S+)', page)
    }


@pytest.mark.parametrize("load", [("--clients", "6"), ("--rate", "300", "--clients", "40")], ids=["closed", "open"])
def test_every_request_is_asked_once_and_counted_once(terminal: Terminal, daemon: Daemon, load: list[str]) -> None:
    asked = ("--requests", "200", "--warmup", "0", "--repeats", "1", "--expect", "hello", "--processes", "2")
    points = terminal.points("echo", *load, *asked)
    assert [point.protocol for point in points] == ["grpc", "rest"]
    for point in points:
        assert (point.measurement.answered, point.measurement.errors) == (200, {})
        assert (point.model, point.workers, point.batch_size, point.batch_delay_ms) == ("echo", 1, 4, 2)
        assert point.device == "cpu"
        # What the daemon says of the same time.
        assert sum(point.server.queue_times_ms.values()) == 200
        assert 200 / 4 <= sum(point.server.batch_sizes.values()) <= 200
        assert 1.0 <= point.server.mean_batch <= 4.0
        assert point.measurement.mean_ms > point.server.worker_ms > 0.0
        assert point.usage.processes >= 2
        assert point.usage.cpu_seconds > 0.0
        assert point.usage.memory_mib > 20.0
    assert outcomes(daemon) == {"ok": 400.0}


def test_the_run_of_median_throughput_is_kept_and_all_are_shown(terminal: Terminal, daemon: Daemon) -> None:
    (point,) = terminal.points(
        "echo", "--protocol", "rest", "--clients", "2", "--requests", "100", "--warmup-requests", "20", "--repeats", "3"
    )
    throughputs = sorted(one.throughput for one in point.repeats)
    assert len(throughputs) == 3
    assert point.measurement.throughput == throughputs[1]
    assert "--repeats 3" in read_about(terminal.folder / "run.json")["command"]
    # The warm-up counts nowhere but with the daemon: at least twenty each, and what was on its way.
    assert outcomes(daemon)["ok"] >= 3 * 120


def test_what_the_daemon_says_is_of_what_counts_and_not_of_the_warm_up(terminal: Terminal, daemon: Daemon) -> None:
    (point,) = terminal.points(
        "echo", "--protocol", "rest", "--clients", "2", "--seconds", "0.5", "--warmup", "2", "--repeats", "1"
    )
    # It is asked at full speed all the time: with its warm-up it would be five times as many.
    told = sum(point.server.queue_times_ms.values())
    assert point.measurement.answered <= told < 2 * point.measurement.answered


def test_what_the_server_refuses_is_shown_by_reason(terminal: Terminal, daemon: Daemon) -> None:
    ended = terminal.bench("no-such-model", "--clients", "2", "--requests", "10", "--repeats", "1", "--warmup", "0")
    assert ended.code == 1
    assert "grpc, 2 clients: 10 x NOT_FOUND: MODEL_NOT_FOUND" in ended.out
    assert "rest, 2 clients: 10 x HTTP 404 ModelNotFoundException" in ended.out
    ended = terminal.bench(
        "echo", "--token", "wrong", "--clients", "1", "--requests", "3", "--repeats", "1", "--warmup", "0"
    )
    assert ended.code == 1
    assert "x UNAUTHENTICATED: BAD_TOKEN" in ended.out


def test_an_archive_is_served_in_the_setting_asked_for_and_nothing_is_left(terminal: Terminal) -> None:
    pack_model(terminal.folder, "echo")
    short = ("--clients", "8", "--seconds", "0.5", "--warmup", "0.1", "--repeats", "1", "--histograms")
    setting = ("--workers", "2", "--batch-size", "3", "--batch-delay", "4")
    points = terminal.points("store/echo.mar", *setting, *short)
    for point in points:
        assert (point.workers, point.batch_size, point.batch_delay_ms) == (2, 3, 4)
        assert point.measurement.answered > 0
        assert point.measurement.errors == {}
        assert point.measurement.seconds == pytest.approx(0.5, abs=0.01)
    assert not list((terminal.folder / "scratch").iterdir())


def test_an_archive_that_cannot_be_served_says_why(terminal: Terminal) -> None:
    (terminal.folder / "broken.mar").write_bytes(b"no archive")
    ended = terminal.bench("broken.mar")
    assert ended.code == 2
    assert "broken.mar could not be served" in ended.err


def test_a_server_that_is_not_there_is_named(terminal: Terminal) -> None:
    ended = terminal.bench("m", "--protocol", "rest", "--inference", f"127.0.0.1:{free_ports(1)[0]}", "--repeats", "1")
    assert ended.code == 2
    assert "no server at 127.0.0.1:" in ended.err


def test_a_daemon_killed_meanwhile_is_seen_as_lost_connections(terminal: Terminal, daemon: Daemon) -> None:
    words = ("echo", "--clients", "4", "--seconds", "3", "--warmup", "0", "--repeats", "1", "--json", "run.json")
    with terminal.started(*words, "--protocol", "rest", "--timeout", "2") as process:
        eventually(lambda: outcomes(daemon).get("ok", 0) > 20, within=30.0)
        daemon.kill()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    (point,) = read_points(terminal.folder / "run.json")
    assert 1 <= point.measurement.errors["connection lost"] <= 4
    assert point.measurement.errors["cannot connect: Connection refused"] > 0


def test_ctrl_c_ends_the_processes_that_ask_and_the_daemon(terminal: Terminal) -> None:
    pack_model(terminal.folder, "echo")
    with terminal.started("store/echo.mar", "--seconds", "60", "--processes", "2", "--clients", "4") as process:
        me = psutil.Process(process.pid)

        def asks() -> list[psutil.Process]:
            return [one for one in me.children(recursive=True) if "load_process" in " ".join(one.cmdline())]

        eventually(lambda: len(asks()) == 2, within=60.0)
        below = me.children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode != 0
    eventually(lambda: not any(one.is_running() and one.status() != "zombie" for one in below), within=20.0)
    assert not list((terminal.folder / "scratch").iterdir())


@pytest.mark.timeout(400)
def test_the_page_as_typed(terminal: Terminal) -> None:
    """Every `bash` block in one shell; only the ports are this test's."""
    flags = " ".join(f"--{name}-port {port}" for name, port in zip(PORTS, free_ports(5), strict=True))
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    program = "set -eo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n"
    program += "".join(f"{block}\necho '== end of a block'\n" for block in blocks)
    assert program.count("torchd serve ") == 1
    log = terminal.folder / "terminal.log"
    with log.open("w") as output:
        ended = subprocess.run(
            ["bash", "-c", program.replace("torchd serve ", f"torchd serve {flags} ")],
            cwd=terminal.folder,
            env=terminal.variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=380,
        )
    assert ended.returncode == 0, log.read_text()
    _, archive, running, rate, percentiles, report, suite, comparison, _ = log.read_text().split("== end of a block\n")
    assert "1 workers, batch 8 / 5 ms" in archive
    assert len(re.findall(r"^ *(grpc|rest) +(1|16) clients ", archive, re.MULTILINE)) == 4
    assert "batch of at most" in archive
    assert re.search(r"grpc +8 clients +2000 +0 ", running)
    assert "100/s by at most 256" in rate
    assert set(json.loads(percentiles.replace("'", '"'))) == {"50", "90", "95", "99", "99.9"}
    assert " x " not in archive + running + rate  # no errors
    assert "Benchmark,TS failed requests,TS throughput" in report
    assert re.search(r"eager_mode_length +cpu +1 +4 +5 +10 +rest +300 +0 ", suite)
    assert (terminal.folder / "results" / "report.html").is_file()
    assert re.search(r"\d+ better, \d+ worse, \d+ without a change beyond noise", comparison)
