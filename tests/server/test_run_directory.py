"""The run directory: one living daemon, private, and nothing of a dead one stays."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from torchd_server.run_directory import RunDirectory, RunDirectoryTaken, default_run_directory


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_folder_that_is_made_is_private(tmp_path: Path) -> None:
    """S48."""
    directory = RunDirectory(tmp_path / "a" / "b" / "7071")
    assert [mode(path) for path in (tmp_path / "a", tmp_path / "a" / "b", directory.path, directory.scratch)] == [
        0o700
    ] * 4
    directory.leave()


def test_a_second_daemon_is_told_who_lives_there(tmp_path: Path) -> None:
    """P20."""
    first = RunDirectory(tmp_path / "run")
    first.announce({"inference": "http://127.0.0.1:8080"})
    with pytest.raises(RunDirectoryTaken, match=f"pid {os.getpid()}"):
        RunDirectory(tmp_path / "run")
    assert first.scratch.is_dir(), "the second one took what the first one uses"
    first.leave()
    RunDirectory(tmp_path / "run").leave()


def test_the_addresses_are_there_while_it_lives(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.announce({"inference": "http://127.0.0.1:8080"})
    document = json.loads((tmp_path / "run" / "daemon.json").read_text())
    assert document == {"pid": os.getpid(), "inference": "http://127.0.0.1:8080"}
    directory.leave()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["lock"]


def test_what_a_killed_daemon_unpacked_is_removed(tmp_path: Path) -> None:
    (tmp_path / "run" / "models" / "7").mkdir(parents=True)
    directory = RunDirectory(tmp_path / "run")
    assert list(directory.scratch.iterdir()) == []
    directory.leave()


def test_a_folder_open_to_others_is_closed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o777)
    directory = RunDirectory(tmp_path / "run")
    assert mode(tmp_path / "run") == 0o700
    directory.leave()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """S48: /tmp is everybody's."""
    (tmp_path / "run").mkdir()
    os.chown(tmp_path / "run", 65534, 65534)
    with pytest.raises(RunDirectoryTaken, match="not a folder of user"):
        RunDirectory(tmp_path / "run")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_inside_somebody_elses_is_refused(tmp_path: Path) -> None:
    """S48: whoever owns `torchd-<uid>` can rename what we make in it."""
    (tmp_path / "torchd-0").mkdir()
    os.chown(tmp_path / "torchd-0", 65534, 65534)
    with pytest.raises(RunDirectoryTaken):
        RunDirectory(tmp_path / "torchd-0" / "7071").leave()


def test_a_link_or_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises((RunDirectoryTaken, OSError)):
            RunDirectory(tmp_path / name)


def test_it_lies_in_the_users_runtime_folder_else_in_a_temporary_one(tmp_path: Path) -> None:
    assert default_run_directory({"XDG_RUNTIME_DIR": str(tmp_path)}, 7071) == tmp_path / "torchd" / "7071"
    elsewhere = default_run_directory({"XDG_RUNTIME_DIR": str(tmp_path / "gone")}, 7071)
    assert elsewhere.parts[-2:] == (f"torchd-{os.getuid()}", "7071")
