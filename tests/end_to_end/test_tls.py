"""TLS over the wire: every form of key on both surfaces, client certificates, new files, strange handshakes."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from http.client import HTTPSConnection
from pathlib import Path

import grpc
import pytest
from faults.arena import Arena
from harness.certificates import Authority
from harness.commands import ROOT
from harness.daemon import Daemon
from harness.eventually import eventually

from torchd_clients import Client, Tls, errors

CLI = "import typer; from torchd_clients.cli import add_commands; app = typer.Typer(); add_commands(app); app()"
CONFIG = """\
inference_address=https://127.0.0.1:{0}
management_address=https://127.0.0.1:{1}
metrics_address=http://127.0.0.1:{2}
grpc_inference_port={3}
grpc_management_port={4}
enable_grpc_ssl=true
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def pair(authority: Authority) -> list[str]:
    certificate, key = authority.pair("server")
    return ["--tls-certificate", str(certificate), "--tls-key", str(key)]


def get(daemon: Daemon, context: ssl.SSLContext, path: str = "/ping") -> int:
    connection = HTTPSConnection(*daemon.host_and_port("inference"), context=context, timeout=20.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def shown_over_rest(daemon: Daemon, context: ssl.SSLContext) -> str:
    with socket.create_connection(daemon.host_and_port("inference"), timeout=20.0) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as secure:
            subject = (secure.getpeercert() or {})["subject"]
    return str(dict(pair[0] for pair in subject)["commonName"])  # type: ignore[union-attr]


def addresses(daemon: Daemon) -> tuple[str, str]:
    return daemon.addresses["grpc_inference"], daemon.addresses["grpc_management"]


def ping(daemon: Daemon, tls: Tls | None) -> str:
    """Over a channel of its own: gRPC would share a connection that is open."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with Client(*addresses(daemon), tls=tls, timeout=10.0, channel_options=options) as client:
        return client.ping()


@pytest.mark.parametrize("form", ["PKCS1", "PKCS8", "PKCS12"])
def test_every_form_of_key_serves_both_surfaces(arena: Arena, authority: Authority, form: str) -> None:
    """Reference 0 row 4, 10.4: `torchserve` with https addresses and enable_grpc_ssl."""
    daemon = arena.daemon(command="torchserve")
    if form == "PKCS12":
        given = f"keystore={authority.keystore('stored')}\n"
    else:
        certificate, key = authority.pair(f"server-{form}", key_format=form)
        given = f"certificate_file={certificate}\nprivate_key_file={key}\n"
    (daemon.folder / "config.properties").write_text(CONFIG.format(*daemon.ports) + given)
    with daemon:
        assert get(daemon, ssl.create_default_context(cafile=str(authority.path))) == 200
        assert ping(daemon, Tls(authority.path.read_bytes())) == "Healthy"
        with pytest.raises(ssl.SSLCertVerificationError):
            get(daemon, ssl.create_default_context())
        with pytest.raises(errors.Unavailable):
            ping(daemon, None)


@pytest.mark.needs("curl")
def test_curl_speaks_to_it_and_is_told_where_it_does_not(arena: Arena, authority: Authority, pair: list[str]) -> None:
    """Reference 2.5: TorchServe's own answer to plain HTTP."""
    with arena.daemon(*pair) as daemon:
        host, port = daemon.host_and_port("inference")

        def curl(*words: str) -> str:
            command = ["curl", "-sS", "--max-time", "20", *words]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        assert json.loads(curl("--cacert", str(authority.path), f"https://{host}:{port}/ping")) == {"status": "Healthy"}
        assert curl("-w", "%{http_code}", f"http://{host}:{port}/ping") == (
            '{\n  "status": "This TorchServe instance only accepts HTTPS requests"\n}\n403'
        )


def test_without_files_a_self_signed_certificate_serves_and_our_client_knows_it(arena: Arena) -> None:
    daemon = arena.daemon(command="torchserve", tokens=True)
    (daemon.folder / "config.properties").write_text(CONFIG.format(*daemon.ports))
    with daemon:
        assert "self-signed" in daemon.log
        found = subprocess.run(
            [sys.executable, "-c", CLI, "models", "--json"],
            env=os.environ | daemon.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (found.returncode, found.stdout.strip()) == (0, "[]"), found.stderr


def test_only_clients_of_the_authority_come_in(arena: Arena, authority: Authority, tmp_path: Path) -> None:
    """S57: mTLS on both surfaces; none, another authority's, an expired one."""
    certificate, key = authority.pair("server")
    stranger = Authority(tmp_path, "stranger")
    clients = {
        "good": authority.pair("client"),
        "expired": authority.pair("late", days=-1),
        "stranger": stranger.pair("client"),
        "none": None,
    }
    ca = authority.path.read_bytes()
    arguments = ["--tls-certificate", str(certificate), "--tls-key", str(key), "--tls-client-ca", str(authority.path)]
    with arena.daemon(*arguments) as daemon:
        for name, own in clients.items():
            context = ssl.create_default_context(cafile=str(authority.path))
            tls = Tls(ca)
            if own is not None:
                context.load_cert_chain(*own)
                tls = Tls(ca, "", own[0].read_bytes(), own[1].read_bytes())
            if name == "good":
                assert get(daemon, context) == 200
                assert ping(daemon, tls) == "Healthy"
                continue
            with pytest.raises(OSError):
                get(daemon, context)
            with pytest.raises(errors.Unavailable):
                ping(daemon, tls)


def test_a_new_certificate_is_shown_without_a_restart_and_a_bad_one_is_not(
    arena: Arena, authority: Authority, tmp_path: Path
) -> None:
    """T03, E25: at the next handshake of either surface; connections that are open live on."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def put(name: str, key_of: str = "") -> None:
        first, second = authority.pair(name)[0], authority.pair(key_of or name)[1]
        if not key_of:
            first, second = authority.pair(name)
        for source, target in ((second, key), (first, certificate)):
            staging = target.with_suffix(".new")
            staging.write_bytes(source.read_bytes())
            staging.replace(target)

    put("first")
    context = ssl.create_default_context(cafile=str(authority.path))
    with arena.daemon("--tls-certificate", str(certificate), "--tls-key", str(key)) as daemon, ExitStack() as open_:
        assert shown_over_rest(daemon, context) == "first"
        old = open_.enter_context(socket.create_connection(daemon.host_and_port("inference"), timeout=20.0))
        old = open_.enter_context(context.wrap_socket(old, server_hostname="localhost"))
        put("second")
        assert shown_over_rest(daemon, context) == "second"
        assert grpc_peer(daemon) == "second"
        put("third", key_of="another")
        assert shown_over_rest(daemon, context) == "second"
        assert grpc_peer(daemon) == "second"
        assert "the old ones stay" in daemon.log
        old.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert old.recv(12) == b"HTTP/1.1 200"
        told = Path(daemon.addresses["certificate"])
        eventually(lambda: told.read_bytes() == authority.folder.joinpath("second.pem").read_bytes())


def grpc_peer(daemon: Daemon) -> str:
    """The name in the certificate that the gRPC port shows."""
    host, port = daemon.host_and_port("grpc_inference")
    pem = ssl.get_server_certificate((host, port), timeout=20.0)
    told = subprocess.run(
        ["openssl", "x509", "-noout", "-subject"], input=pem, capture_output=True, text=True, check=True
    )
    return told.stdout.rpartition("=")[2].strip()


def test_half_handshakes_and_strange_bytes_harm_nobody(arena: Arena, authority: Authority, pair: list[str]) -> None:
    """S57: a thousand half handshakes; 16 03 01 and silence; junk behind a true beginning; gone at once."""
    context = ssl.create_default_context(cafile=str(authority.path))
    with arena.daemon(*pair) as daemon, ExitStack() as open_:
        for number in range(1000):
            half = open_.enter_context(socket.create_connection(daemon.host_and_port("inference"), timeout=20.0))
            half.sendall((b"\x16\x03\x01", b"\x16", b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")[number % 4])
        assert get(daemon, context) == 200
        for junk in (b"\x16" + os.urandom(2000), b"\x80\x2e\x01\x00\x02", os.urandom(500)):
            with socket.create_connection(daemon.host_and_port("inference"), timeout=20.0) as strange:
                strange.sendall(junk)
                strange.shutdown(socket.SHUT_WR)
                with suppress(ConnectionResetError):
                    while strange.recv(65536):
                        pass
        with pytest.raises(ssl.SSLCertVerificationError):
            HTTPSConnection(*daemon.host_and_port("inference"), context=ssl.create_default_context()).request(
                "GET", "/"
            )
        assert get(daemon, context) == 200
        assert "Traceback" not in daemon.log


def test_a_handshake_has_ten_seconds(arena: Arena, pair: list[str]) -> None:
    """S57: what begins a handshake and says no more is hung up on, over REST and gRPC alike."""
    with arena.daemon(*pair) as daemon, ExitStack() as open_:
        slow, began = [], time.monotonic()
        for name in ("inference", "grpc_inference"):
            one = open_.enter_context(socket.create_connection(daemon.host_and_port(name), timeout=25.0))
            one.sendall(b"\x16\x03\x01\x02\x00")
            slow.append(one)
        for one in slow:
            with suppress(ConnectionResetError):
                while one.recv(100):  # an alert may come before the end
                    pass
        assert 9.0 < time.monotonic() - began < 20.0


def test_a_mistake_in_the_files_is_named_and_nothing_starts(arena: Arena, authority: Authority) -> None:
    certificate, key = authority.pair("server")[0], authority.pair("another")[1]
    daemon = arena.daemon("--tls-certificate", str(certificate), "--tls-key", str(key))
    daemon.launch()
    assert not daemon.wait_ready_or_gone()
    assert daemon.wait() == 78
    assert "the key that belongs to it" in daemon.log
    assert "Traceback" not in daemon.log


def test_a_connection_is_kept_and_a_refusal_in_mid_upload_can_be_read(
    arena: Arena, authority: Authority, pair: list[str]
) -> None:
    with arena.daemon(*pair) as daemon:
        context = ssl.create_default_context(cafile=str(authority.path))
        connection = HTTPSConnection(*daemon.host_and_port("metrics"), context=context, timeout=20.0)
        for _ in range(3):  # on one connection
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            assert answer.status == 200
            assert len(answer.read()) == int(answer.headers["content-length"])
        connection.request("POST", "/metrics", b"x" * 20_000_000)
        assert connection.getresponse().status == 413
        connection.close()


def test_a_grpc_client_that_offers_no_alpn_is_refused(arena: Arena, authority: Authority, pair: list[str]) -> None:
    """S57."""
    with arena.daemon(*pair) as daemon:
        context = ssl.create_default_context(cafile=str(authority.path))
        with socket.create_connection(daemon.host_and_port("grpc_inference"), timeout=20.0) as plain:
            received = b""
            with suppress(OSError), context.wrap_socket(plain, server_hostname="localhost") as secure:
                secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                received = secure.recv(100)
            assert received == b""
        assert ping(daemon, Tls(authority.path.read_bytes())) == "Healthy"


def test_a_plain_channel_to_a_tls_port_fails_and_says_nothing_of_a_token(arena: Arena, pair: list[str]) -> None:
    with arena.daemon(*pair, tokens=True) as daemon:
        with grpc.insecure_channel(daemon.addresses["grpc_inference"]) as channel:
            with pytest.raises(grpc.RpcError) as broken:
                channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10.0)
        assert broken.value.code() is grpc.StatusCode.UNAVAILABLE
