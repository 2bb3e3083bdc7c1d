"""sd_notify: states reach the socket the service manager names, and its trouble stays its own."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from torchd_server import service_manager
from torchd_server.placement.local import LocalPlacement


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(5)
    return listener


def test_a_state_is_one_datagram(manager: socket.socket) -> None:
    with manager:
        service_manager.notify({"NOTIFY_SOCKET": manager.getsockname()}, service_manager.READY)
        assert manager.recv(100) == b"READY=1"


def test_an_abstract_socket_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0torchd-test-notify")
        manager.settimeout(5)
        service_manager.notify({"NOTIFY_SOCKET": "@torchd-test-notify"}, service_manager.STOPPING)
        assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("path", ["", "relative/socket", "vsock:2:1234"])
def test_what_is_no_unix_socket_is_left_alone(path: str) -> None:
    service_manager.notify({"NOTIFY_SOCKET": path}, service_manager.READY)


def test_a_manager_that_is_gone_is_logged_and_not_raised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service_manager.notify({"NOTIFY_SOCKET": str(tmp_path / "nobody")}, service_manager.READY)
    assert "was not told READY=1" in caplog.text


def test_workers_never_see_the_managers_variables() -> None:
    placement = LocalPlacement({"NOTIFY_SOCKET": "/run/x", "HOME": "/"}, None)
    assert placement._environment == {"HOME": "/"}
