"""The leak check against things that leak: what has not been seen to fail proves nothing (P21)."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from harness.leaks import Holdings, check_no_process_left, check_nothing_left, files_in, processes_of

WAIT_FOR_END_OF_INPUT = [sys.executable, "-c", "import sys; sys.stdin.read()"]


def open_file(scope: ExitStack, folder: Path) -> None:
    scope.enter_context((folder / "file").open("w"))


def open_socket(scope: ExitStack, folder: Path) -> None:
    scope.enter_context(closing(socket.socket()))


def running_thread(scope: ExitStack, folder: Path) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="forgotten")
    thread.start()
    scope.callback(thread.join)
    scope.callback(over.set)


def running_child(scope: ExitStack, folder: Path) -> None:
    child = subprocess.Popen(WAIT_FOR_END_OF_INPUT, stdin=subprocess.PIPE, cwd=folder)
    scope.callback(child.wait)
    assert child.stdin is not None
    scope.callback(child.stdin.close)


@pytest.mark.parametrize(
    ("leak", "word"),
    [(open_file, "descriptor"), (open_socket, "socket"), (running_thread, "forgotten"), (running_child, "child")],
)
def test_what_is_left_behind_is_named(tmp_path: Path, leak: Callable[[ExitStack, Path], None], word: str) -> None:
    before = Holdings.now()
    with ExitStack() as scope:
        leak(scope, tmp_path)
        with pytest.raises(AssertionError, match=word):
            check_nothing_left(before, within=0.05)
    check_nothing_left(before)


def test_a_process_of_the_folder_is_found_by_where_it_works(tmp_path: Path) -> None:
    with ExitStack() as scope:
        running_child(scope, tmp_path)
        assert len(processes_of(tmp_path)) == 1
    check_no_process_left(tmp_path)


def test_a_process_that_was_cut_loose_is_found_by_its_environment(tmp_path: Path) -> None:
    """W17: a double fork in a session of its own has no parent to be found by."""
    orphan = "import os, sys, time\nif os.fork(): os._exit(0)\nos.setsid()\nos.chdir('/')\ntime.sleep(600)"
    subprocess.run([sys.executable, "-c", orphan], env={"TMPDIR": str(tmp_path)}, check=True, timeout=30)
    [found] = processes_of(tmp_path)
    with pytest.raises(AssertionError, match=str(found.pid)):
        check_no_process_left(tmp_path, within=0.05)
    check_no_process_left(tmp_path)


def test_files_are_listed_and_empty_folders_are_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert list(files_in(tmp_path)) == ["full/file"]
