"""The pid file: made new, believed only if it is ours and names a server that was there before it (S48, TS10)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from torchd_server.torchserve.pid_file import NAME, PidFile, PidFileUnsafe


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    """A process whose command line is a server's."""
    process = subprocess.Popen([sys.executable, "-c", "input()", "torchserve"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def test_a_file_of_ours_is_private_and_goes_with_its_owner(tmp_path: Path) -> None:
    file = PidFile(tmp_path)
    file.write()
    assert (file.path.read_text(), file.path.stat().st_mode & 0o777) == (str(os.getpid()), 0o600)
    file.remove(os.getpid() + 1)
    assert file.path.exists()
    file.remove(os.getpid())
    assert not file.path.exists()


def test_a_living_server_is_found(tmp_path: Path, server: subprocess.Popen[bytes]) -> None:
    (tmp_path / NAME).write_text(str(server.pid))
    found = PidFile(tmp_path).running()
    assert found is not None
    assert found.pid == server.pid


@pytest.mark.parametrize("content", ["", "x", "999999999", "1", "-1"])
def test_what_names_no_server_is_an_orphan(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    assert PidFile(tmp_path).running() is None


def test_a_process_that_is_no_server_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (tmp_path / NAME).write_text(str(other.pid))
        assert PidFile(tmp_path).running() is None
        other.kill()


def test_a_number_given_to_a_later_process_is_not_ours(tmp_path: Path, server: subprocess.Popen[bytes]) -> None:
    """W28: the file is older than the process it names."""
    path = tmp_path / NAME
    path.write_text(str(server.pid))
    os.utime(path, (time.time() - 3600, time.time() - 3600))
    assert PidFile(tmp_path).running() is None


def test_a_link_in_its_place_is_neither_read_nor_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    (tmp_path / NAME).symlink_to(victim)
    with pytest.raises(PidFileUnsafe):
        PidFile(tmp_path).running()
    PidFile(tmp_path).remove(os.getpid())
    assert victim.read_text() == "keep"


def test_of_two_that_start_at_once_the_second_takes_nothing_from_the_first(
    tmp_path: Path, server: subprocess.Popen[bytes]
) -> None:
    """Both have looked and found nobody; the slower one ends at the taken port, and the file still names the other."""
    file = PidFile(tmp_path)
    assert file.running() is None
    file.path.write_text(str(server.pid))
    with pytest.raises(FileExistsError):
        file.write()
    file.remove(os.getpid())
    assert file.path.read_text() == str(server.pid)


def test_an_orphan_gives_way(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("999999999")
    PidFile(tmp_path).write()
    assert (tmp_path / NAME).read_text() == str(os.getpid())
