"""A Unix socket takes the place of nothing that lives, and of nothing that is not ours (D14)."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from torchd_server.surfaces.rest import unix_socket


def test_it_is_open_to_this_user_alone(tmp_path: Path) -> None:
    with unix_socket.bind(tmp_path / "s"):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600


def test_a_dead_one_is_replaced(tmp_path: Path) -> None:
    unix_socket.bind(tmp_path / "s").close()
    with unix_socket.bind(tmp_path / "s") as bound:
        bound.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))


def test_a_living_one_stays(tmp_path: Path) -> None:
    with unix_socket.bind(tmp_path / "s") as bound:
        bound.listen()
        with pytest.raises(FileExistsError, match="somebody listens"):
            unix_socket.bind(tmp_path / "s")


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_is_no_socket_is_not_touched(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        unix_socket.bind(tmp_path / "elsewhere").close()
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match="no socket of user"):
        unix_socket.bind(path)
    assert path.lstat()


def test_at_the_end_only_the_socket_that_was_bound_goes(tmp_path: Path) -> None:
    path, another = tmp_path / "s", tmp_path / "another"
    another.write_text("")
    with unix_socket.bind(path):
        unix_socket.remove(path, another.stat())
        assert path.exists()
        unix_socket.remove(path, path.lstat())
        assert not path.exists()
