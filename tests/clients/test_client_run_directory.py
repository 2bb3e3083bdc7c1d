"""Which daemon a command talks to when nobody names one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from torchd_clients.run_directory import Daemon, find_daemon


@pytest.fixture(autouse=True)
def own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))


def announce(runtime: Path, port: int, pid: int) -> None:
    folder = runtime / "torchd" / str(port)
    folder.mkdir(parents=True, mode=0o700)
    folder.parent.chmod(0o700)
    addresses = {"grpc_inference": f"127.0.0.1:{port - 1}", "grpc_management": f"127.0.0.1:{port}"}
    (folder / "daemon.json").write_text(json.dumps({"pid": pid, **addresses, "metrics": "http://127.0.0.1:8082"}))


def found(runtime: Path) -> Daemon | None:
    return find_daemon({"XDG_RUNTIME_DIR": str(runtime)})


def pid_of_nobody() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_the_only_daemon_is_found(tmp_path: Path) -> None:
    announce(tmp_path, 7171, os.getpid())
    assert found(tmp_path) == Daemon(os.getpid(), "127.0.0.1:7170", "127.0.0.1:7171", metrics="127.0.0.1:8082")


def test_without_a_runtime_directory_the_temporary_one_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    announce(tmp_path, 7171, os.getpid())
    (tmp_path / "torchd").rename(tmp_path / f"torchd-{os.getuid()}")
    assert find_daemon({}) == Daemon(os.getpid(), "127.0.0.1:7170", "127.0.0.1:7171", metrics="127.0.0.1:8082")


def test_among_two_daemons_none_is_chosen(tmp_path: Path) -> None:
    announce(tmp_path, 7171, os.getpid())
    announce(tmp_path, 7271, os.getppid())
    assert found(tmp_path) is None


def test_a_daemon_that_was_killed_does_not_count(tmp_path: Path) -> None:
    announce(tmp_path, 7171, pid_of_nobody())
    announce(tmp_path, 7271, os.getpid())
    assert found(tmp_path) == Daemon(os.getpid(), "127.0.0.1:7270", "127.0.0.1:7271", metrics="127.0.0.1:8082")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": "x"}', '{"pid": 1e999}', "null"])
def test_a_broken_file_is_passed_over(tmp_path: Path, text: str) -> None:
    announce(tmp_path, 7171, os.getpid())
    (tmp_path / "torchd" / "7171" / "daemon.json").write_text(text)
    assert found(tmp_path) is None


def test_a_folder_that_others_can_write_to_is_not_believed(tmp_path: Path) -> None:
    """Anybody can make the folder in a shared temporary directory, and be sent our requests."""
    announce(tmp_path, 7171, os.getpid())
    (tmp_path / "torchd").chmod(0o777)
    assert found(tmp_path) is None


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    announce(tmp_path / "elsewhere", 7171, os.getpid())
    (tmp_path / "torchd").symlink_to(tmp_path / "elsewhere" / "torchd")
    assert found(tmp_path) is None


def test_no_daemon_is_no_error(tmp_path: Path) -> None:
    assert found(tmp_path) is None
    assert find_daemon({}) is None
