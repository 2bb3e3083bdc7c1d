"""Who may listen where, and which browsers are answered, as an operator meets it."""

from __future__ import annotations

import socket
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest
from faults.arena import Arena
from harness.certificates import Authority
from harness.daemon import Daemon

EVERYWHERE = """\
inference_address=http://0.0.0.0:{0}
management_address=http://0.0.0.0:{1}
metrics_address=http://0.0.0.0:{2}
grpc_inference_port={3}
grpc_management_port={4}
cors_allowed_origin=https://a.example
cors_allowed_methods=GET, POST
"""


def ask(daemon: Daemon, method: str, path: str, **headers: str) -> tuple[int, dict[str, str]]:
    connection = HTTPConnection("127.0.0.1", daemon.host_and_port("inference")[1], timeout=20.0)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host="Host" in given)
    for name, value in given.items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}


def test_a_default_start_listens_on_this_machine_only(arena: Arena) -> None:
    """S22."""
    with arena.daemon(tokens=True) as daemon:
        listening = [c for c in psutil.Process(daemon.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert len(listening) == 5
        assert {connection.laddr.ip.removeprefix("::ffff:") for connection in listening} == {"127.0.0.1"}
        assert "warning" not in daemon.log


@pytest.mark.parametrize("more", [[], ["--no-token-auth"]])
def test_other_machines_are_not_let_in_by_accident(arena: Arena, more: list[str]) -> None:
    """S22, E01: exit status 78, and both ways out."""
    daemon = arena.daemon("--host", "0.0.0.0", *more, tokens=True)
    daemon.launch()
    assert not daemon.wait_ready_or_gone()
    assert daemon.wait() == 78
    assert "--tls-certificate" in daemon.log
    assert "--insecure-listen" in daemon.log


def test_they_are_with_tls_and_tokens_or_by_the_operators_own_word(arena: Arena, tmp_path: Path) -> None:
    certificate, key = map(str, Authority(tmp_path).pair("server"))
    with arena.daemon("--host", "0.0.0.0", "--tls-certificate", certificate, "--tls-key", key, tokens=True) as daemon:
        assert "warning" not in daemon.log
    with arena.daemon("--host", "0.0.0.0", "--insecure-listen") as daemon:
        assert daemon.log.count("without TLS") == 5
        assert "token authorization is off" in daemon.log


def test_torchserve_takes_the_configuration_it_always_took(arena: Arena) -> None:
    """Seed 001: every address 0.0.0.0, no TLS; a line for each weak value, TorchServe's CORS headers."""
    daemon = arena.daemon("--enable-model-api", command="torchserve")
    (daemon.folder / "config.properties").write_text(EVERYWHERE.format(*daemon.ports))
    with daemon:
        for words in ("without TLS", "authorization is off", "model API", "allowed_urls", "whole environment"):
            assert words in daemon.log
        for path, status in (("/ping", 200), ("/nothing", 404)):
            found, headers = ask(daemon, "GET", path, Origin="https://b.example", Host="evil.example")
            assert found == status
            assert headers["access-control-allow-origin"] == "https://a.example"
            assert headers["access-control-allow-methods"] == "GET, POST"
            assert "access-control-allow-headers" not in headers


def test_a_page_of_another_site_reaches_nothing(arena: Arena) -> None:
    """S27."""
    with arena.daemon() as daemon:
        assert ask(daemon, "GET", "/ping")[0] == 200
        assert ask(daemon, "GET", "/ping", Host="evil.example")[0] == 421
        for headers in ({"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
            status, told = ask(
                daemon, "POST", "/predictions/m", Content_Type="text/plain", Content_Length="0", **headers
            )
            assert status == 403
            assert not [name for name in told if name.startswith("access-control")]


def test_rest_on_unix_sockets(arena: Arena) -> None:
    """D14: bound for this user, gone at the end, and a dead one replaced."""
    daemon = arena.daemon(command="torchserve")
    path = daemon.folder / "inference.sock"
    config = daemon.folder / "config.properties"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("inference_address")]
    config.write_text("\n".join([*lines, f"inference_address=unix:{path}", ""]))
    with daemon:
        assert daemon.addresses["inference"] == f"unix:{path}"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /ping HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n")
            received = b""
            while piece := client.recv(65536):
                received += piece
            assert received.startswith(b"HTTP/1.1 200 ")
    assert not path.exists()
