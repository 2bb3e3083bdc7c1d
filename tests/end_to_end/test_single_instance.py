"""One daemon for one run directory and one set of ports; the second one says why it leaves (P20)."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from pathlib import Path

import pytest
from faults.arena import Arena
from harness.daemon import Daemon

IN_USE = 98


def second(arena: Arena, folder: Path, *arguments: str, run_dir: Path | None = None) -> Daemon:
    """Another daemon with files of its own, that serves a model from the start."""
    arena.pack(minWorkers=1)
    return Daemon(
        folder, store=arena.store, models=("zoo=zoo-1.0.mar",), arguments=arguments, run_dir=run_dir or folder / "run"
    )


def refused(daemon: Daemon) -> str:
    """Starts a daemon that must leave; returns its last word, the one clear line that says why."""
    daemon.launch()
    assert daemon.wait(30) == IN_USE, daemon.log
    assert "Traceback" not in daemon.log
    lines = [line for line in daemon.log.splitlines() if line.startswith("torchd: ") and "warning: " not in line]
    assert len(lines) == 1, daemon.log
    return lines[0]


def test_a_second_daemon_in_the_same_run_directory_is_refused(arena: Arena, tmp_path: Path) -> None:
    """D13."""
    with arena.daemon() as first:
        line = refused(second(arena, tmp_path / "second", run_dir=first.run_dir))
        assert str(first.run_dir) in line
        assert str(first.pid) in line
        assert json.loads((first.run_dir / "daemon.json").read_text())["pid"] == first.pid
        assert arena.client("rest", first).ping() == "Healthy"
    assert arena.ledger.history() == []  # no worker of the second one has loaded anything


@pytest.mark.parametrize("name", ["grpc_inference", "grpc_management", "inference", "management", "metrics"])
def test_a_second_daemon_on_the_same_port_is_refused(arena: Arena, tmp_path: Path, name: str) -> None:
    """D13: grpc would bind it again without a word (SO_REUSEPORT), and the kernel would deal the clients out."""
    with arena.daemon() as first:
        port = str(first.host_and_port(name)[1])
        line = refused(second(arena, tmp_path / "second", f"--{name.replace('_', '-')}-port", port))
        assert port in line
        assert arena.client("grpc", first).ping() == "Healthy"
    assert not arena.ledger.executions.exists()


def test_a_port_that_somebody_else_holds_is_named_before_any_worker_starts(arena: Arena, tmp_path: Path) -> None:
    """D12."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = str(stranger.getsockname()[1])
        line = refused(second(arena, tmp_path / "second", "--management-port", port))
    assert port in line
    assert not arena.ledger.executions.exists()


def test_the_run_directory_tells_the_addresses_to_its_owner_only(arena: Arena) -> None:
    with arena.daemon() as daemon:
        assert stat.S_IMODE(daemon.run_dir.stat().st_mode) == 0o700
        document = json.loads((daemon.run_dir / "daemon.json").read_text())
        assert document["pid"] == daemon.pid
        assert set(document) >= {"grpc_inference", "grpc_management", "inference", "management", "metrics"}
        for name in ("grpc_inference", "grpc_management", "inference", "management", "metrics"):
            with socket.create_connection(daemon.host_and_port(name), timeout=10):
                pass
    assert not (daemon.run_dir / "daemon.json").exists()


def test_a_killed_daemons_run_directory_is_taken_over(arena: Arena, tmp_path: Path) -> None:
    """D05, D07: what it left lies there; its lock does not."""
    arena.pack(minWorkers=1)
    first = arena.daemon(models=("zoo=zoo-1.0.mar",)).start()
    assert first.kill() == -signal.SIGKILL
    assert (first.run_dir / "daemon.json").exists()
    with Daemon(tmp_path / "second", store=arena.store, models=("zoo=zoo-1.0.mar",), run_dir=first.run_dir) as daemon:
        assert json.loads((daemon.run_dir / "daemon.json").read_text())["pid"] == daemon.pid
        arena.predict(arena.client("rest", daemon)).json()


def test_a_run_directory_that_others_may_write_is_refused(arena: Arena, tmp_path: Path) -> None:
    """TS10, S48: who can write there could pretend to be the daemon."""
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    os.chmod(open_to_all, 0o777)
    daemon = second(arena, tmp_path / "second", run_dir=open_to_all)
    daemon.launch()
    if daemon.wait_ready_or_gone():
        assert stat.S_IMODE(open_to_all.stat().st_mode) == 0o700
        assert daemon.stop() == 0
    else:
        assert str(open_to_all) in daemon.log
        assert daemon.wait() != 0
