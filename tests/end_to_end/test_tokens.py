"""Tokens over the wire: every route and method against every token, in both postures; who finds its token alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import pytest
from faults.arena import Arena
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from harness.access_table import ROUTES, SERVICES, path_of, rows
from harness.commands import ROOT
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.surfaces import open_channel

from torchd_clients import Client, KeyFile, errors

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "FOO")
NOWHERE = (400, 404, 405, 501)
TORCHSERVES = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
# Whom each way to show a token lets in; the words are templates over the daemon's own keys.
SHOWN: dict[str, tuple[list[str], str]] = {
    "none": ([], ""),
    "garbage": (["Bearer garbage"], ""),
    "no scheme": (["{inference}"], ""),
    "basic": (["Basic {management}"], ""),
    "two headers": (["Bearer {inference}", "Bearer {management}"], ""),
    "large": (["Bearer " + "x" * 8000], ""),
    "inference": (["Bearer {inference}"], "inference"),
    "lower-case scheme": (["bearer {inference}"], "inference"),
    "trailing blank": (["Bearer {inference} "], "inference"),
    "management": (["Bearer {management}"], "management"),
    "API": (["Bearer {API}"], "API"),
}
CLI = "import typer; from torchd_clients.cli import add_commands; app = typer.Typer(); add_commands(app); app()"


@pytest.fixture(params=["torchd", "torchserve"])
def daemon(request: pytest.FixtureRequest, arena: Arena) -> Iterator[Daemon]:
    arguments = ["--enable-model-api"] if request.param == "torchserve" else []
    with arena.daemon(*arguments, command=request.param, tokens=True) as daemon:
        yield daemon


def refusal(daemon: Daemon, shown_opens: str, wanted: str) -> int:
    """The status that says no in this posture."""
    if "torchserve" in daemon.command[0]:
        return 400
    return 403 if shown_opens and shown_opens != wanted else 401


def values(daemon: Daemon, shown: str) -> list[str]:
    keys = {scope: daemon.token(scope) for scope in ("inference", "management", "API")}
    return [value.format(**keys) for value in SHOWN[shown][0]]


def ask(connection: HTTPConnection, method: str, path: str, authorization: list[str]) -> tuple[int, bytes, Any]:
    connection.putrequest(method, path)
    for value in authorization:
        connection.putheader("Authorization", value)
    connection.putheader("Content-Length", "0")
    connection.endheaders()
    response = connection.getresponse()
    return response.status, response.read(), response.headers


def test_what_is_served_is_what_the_table_says(daemon: Daemon) -> None:
    """S23: what the running server says of itself; test_rest_router.py compares methods and access, too."""
    for port, table in ROUTES.items():
        _, body, _ = ask(HTTPConnection(*daemon.host_and_port(port), timeout=20.0), "OPTIONS", "/", [])
        assert set(json.loads(body)["paths"]) == {template.replace("=**", "") for _, template in table}
    for port, services in SERVICES.items():
        with open_channel(daemon, port) as channel:
            assert set(ProtoReflectionDescriptorDatabase(channel).get_services()) == set(services)


@pytest.mark.parametrize("port", ROUTES)
def test_no_route_opens_without_its_own_token(daemon: Daemon, port: str) -> None:
    """S23: routes x verbs x tokens."""
    tables = rows(port)
    connection = HTTPConnection(*daemon.host_and_port(port), timeout=20.0)
    asked = 0
    for template in dict.fromkeys(template for _, template in tables):
        for shown, (_, opens) in SHOWN.items():
            authorization = values(daemon, shown)
            for method in METHODS:
                status, body, headers = ask(connection, method, path_of(template), authorization)
                if method in ("CONNECT", "FOO"):
                    connection.close()
                asked += 1
                where = f"{method} {port} {template} with {shown}: {status} {body!r}"
                access = tables.get((method, template))
                if access is None:
                    # Another template may serve it; what none serves is said not to be there.
                    assert status in (*NOWHERE, 401, 403, 429), where
                elif access in ("", opens):
                    assert status not in (401, 403, 429), where
                    assert TORCHSERVES.encode() not in body, where
                elif status == 429:  # S26: these are many wrong tokens at once
                    assert not opens, where
                else:
                    expected = refusal(daemon, opens, access)
                    assert status == expected, where
                    assert ("www-authenticate" in headers) == (status == 401), where
                    what = TORCHSERVES if access != "API" else TORCHSERVES.replace("Authorization", "Authentication")
                    assert expected != 400 or method == "HEAD" or json.loads(body)["message"] == what, where
    connection.close()
    assert asked == len({template for _, template in tables}) * len(SHOWN) * len(METHODS)


def test_no_method_opens_without_its_own_token(daemon: Daemon) -> None:
    """S23: methods x tokens; a method nobody serves is denied like the rest."""
    is_torchserve = "torchserve" in daemon.command[0]
    for port, services in SERVICES.items():
        methods = {"/grpc.channelz.v1.Channelz/GetServers": port[5:], "/no.such.Service/Method": port[5:]}
        with open_channel(daemon, port) as channel:
            pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
            for service, access in services.items():
                if access:
                    found = pool.FindServiceByName(service).methods
                    methods |= {f"/{service}/{name}": access for name in (*(one.name for one in found), "Nothing")}
            for shown, (_, opens) in SHOWN.items():
                metadata = tuple(("authorization", value) for value in values(daemon, shown))
                for method, access in methods.items():
                    code, details = end_of(channel, method, metadata)
                    where = f"{method} with {shown}: {code} {details}"
                    if opens == access:
                        assert code not in ("UNAUTHENTICATED", "PERMISSION_DENIED"), where
                    elif is_torchserve:
                        assert (code, details) == ("PERMISSION_DENIED", TORCHSERVES), where
                    elif code == "RESOURCE_EXHAUSTED":  # S26
                        assert not opens, where
                    else:
                        assert code == ("PERMISSION_DENIED" if opens else "UNAUTHENTICATED"), where


def end_of(channel: grpc.Channel, method: str, metadata: Any = ()) -> tuple[str, str]:
    """The code and details a call with an empty message ends with."""
    call = channel.stream_stream(method)(iter([b""]), metadata=metadata, timeout=20.0)
    try:
        for _ in call:
            pass
    except grpc.RpcError:
        pass
    return call.code().name, call.details()


def test_probes_scrapers_and_tools_need_no_token(daemon: Daemon) -> None:
    """E03: health tells nothing but whether it serves; metrics and reflection are open on loopback."""
    status, _, _ = ask(HTTPConnection(*daemon.host_and_port("metrics"), timeout=20.0), "GET", "/metrics", [])
    assert status == 200
    for name in ("grpc_inference", "grpc_management"):
        with open_channel(daemon, name) as channel:
            assert end_of(channel, "/grpc.health.v1.Health/Check")[0] == "OK"
            assert end_of(channel, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")[0] == "OK"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_api_key_renews_the_other_two(daemon: Daemon, method: str) -> None:
    """Reference 2.3, recorded from 0.12.0: 200, one line end, the old key dies at once."""
    port = daemon.host_and_port("management")
    api = [f"Bearer {daemon.token('API')}"]
    for scope in ("inference", "management"):
        before = daemon.token(scope)
        status, body, headers = ask(HTTPConnection(*port), method, f"/token?type={scope}", api)
        assert (status, body, headers["content-type"]) == (200, b"\n", "application/json")
        after = daemon.token(scope)
        assert after != before
        path = {"inference": "/ping", "management": "/models"}[scope]
        for key, good in ((before, False), (after, True)):
            answer = ask(HTTPConnection(*daemon.host_and_port(scope)), "GET", path, [f"Bearer {key}"])
            assert (answer[0] == 200) == good
    assert [f"Bearer {daemon.token('API')}"] == api
    for wrong in ("/token", "/token?type=API", "/token?type=MANAGEMENT"):
        assert ask(HTTPConnection(*port), method, wrong, api)[0] == 400
    assert ask(HTTPConnection(*daemon.host_and_port("inference")), method, "/token?type=inference", api)[0] >= 400


def test_torchserves_answer_to_a_bad_renewal_has_its_own_word(arena: Arena) -> None:
    with arena.daemon(command="torchserve", tokens=True) as daemon:
        assert (daemon.folder / "key_file.json").samefile(daemon.addresses["key_file"])
        shown = [f"Bearer {daemon.token('management')}"]
        status, body, _ = ask(
            HTTPConnection(*daemon.host_and_port("management")), "GET", "/token?type=inference", shown
        )
        assert status == 400
        assert json.loads(body) == {
            "code": 400,
            "type": "InvalidKeyException",
            "message": "Token Authentication failed. Token either incorrect, expired, or not provided correctly",
        }
    assert not (arena.folder / "key_file.json").exists()


def test_a_token_expires_and_the_file_holds_the_next_in_time(arena: Arena) -> None:
    config = arena.folder / "quick.properties"
    config.write_text("token_expiration_min=0.05\n")
    with arena.daemon("--config", str(config), tokens=True) as daemon:
        first = daemon.token("inference")
        port = daemon.host_and_port("inference")

        def opens(token: str) -> bool:
            return ask(HTTPConnection(*port), "GET", "/ping", [f"Bearer {token}"])[0] == 200

        assert opens(first)
        eventually(lambda: not opens(first))
        # Read and shown at once: a file read at any moment has a token with half its time left.
        assert opens(daemon.token("inference"))


def test_a_key_file_that_cannot_be_written_is_named(arena: Arena) -> None:
    """Under `torchserve` it lies in the working directory, which may be read-only, or hold a folder of that name."""
    (arena.folder / "key_file.json").mkdir()
    daemon = arena.daemon(command="torchserve", tokens=True)
    daemon.launch()
    assert not daemon.wait_ready_or_gone()
    assert daemon.wait() == 78
    assert "key_file.json' will not do" in daemon.log
    assert "Traceback" not in daemon.log


def test_hup_takes_the_keys_a_person_wrote(arena: Arena) -> None:
    """E02."""
    with arena.daemon(tokens=True) as daemon:
        path = Path(daemon.addresses["key_file"])
        keys = json.loads(path.read_text())
        keys["inference"]["key"] = "of-my-own-" + "k" * 22
        path.write_text(json.dumps(keys))
        daemon.signal(signal.SIGHUP)
        port = daemon.host_and_port("inference")
        shown = [f"Bearer {keys['inference']['key']}"]
        eventually(lambda: ask(HTTPConnection(*port), "GET", "/ping", shown)[0] == 200)
        path.write_text("half of a fi")
        daemon.signal(signal.SIGHUP)
        eventually(lambda: "the keys stay as they are" in daemon.log)
        assert ask(HTTPConnection(*port), "GET", "/ping", shown)[0] == 200
        path.unlink()  # what a person has changed is not the daemon's to remove


def test_keys_are_not_in_arguments_logs_or_the_environment_of_workers(arena: Arena) -> None:
    """S25."""
    arena.pack(minWorkers=1, maxWorkers=1)
    with arena.daemon(models=("zoo-1.0.mar",), tokens=True) as daemon:
        keys = [daemon.token(scope) for scope in ("inference", "management", "API")]
        eventually(lambda: bool(daemon.children()))
        for pid in (daemon.pid, *(child.pid for child in daemon.children())):
            seen = Path(f"/proc/{pid}/cmdline").read_bytes()
            with suppress(PermissionError):  # of the daemon nobody but root may read it
                seen += Path(f"/proc/{pid}/environ").read_bytes()
            assert not [key for key in keys if key.encode() in seen]
        assert not [key for key in keys if key in daemon.log]


def run_cli(daemon: Daemon, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of the shell client, as this user."""
    return subprocess.run(
        [sys.executable, "-c", CLI, *words],
        env=os.environ | daemon.environment | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", ["torchd", "torchserve"])
def test_the_shell_finds_the_daemon_of_its_user_and_its_tokens(arena: Arena, command: str) -> None:
    """Issue 3, item 2."""
    run_dir = None if command == "torchserve" else arena.folder / "torchd" / "1"
    with arena.daemon(command=command, tokens=True, run_dir=run_dir) as daemon:
        found = run_cli(daemon, "models", "--json")
        assert (found.returncode, found.stdout.strip()) == (0, "[]"), found.stderr
        assert run_cli(daemon, "ping").stdout.strip() == "Healthy"
        for scope in ("inference", "management", "API"):
            assert run_cli(daemon, "token", scope).stdout.strip() == daemon.token(scope)
        with Client.local(daemon.environment) as client:
            assert (client.ping(), client.list()) == ("Healthy", [])
        for wrong in (
            run_cli(daemon, "models", "--token", "wrong"),
            run_cli(daemon, "models", TORCHD_TOKEN="wrong"),
            run_cli(daemon, "models", "--grpc-management", "localhost:" + daemon.addresses["grpc_management"][-5:]),
        ):
            assert wrong.returncode == 1
        right = run_cli(daemon, "models", "--json", "--token", daemon.token("management"))
        assert right.stdout.strip() == "[]", right.stderr
        assert "--token" in run_cli(daemon, "models", "--token", "wrong").stderr


def test_a_client_shows_its_token_and_reads_a_new_one(daemon: Daemon) -> None:
    addresses = (daemon.addresses["grpc_inference"], daemon.addresses["grpc_management"])
    with Client(*addresses) as stranger, pytest.raises(errors.Unauthenticated):
        stranger.list()
    with Client(*addresses, token=daemon.token("inference")) as one, pytest.raises(errors.TorchdError):
        one.list()
    with Client(*addresses, token=KeyFile(daemon.addresses["key_file"])) as client:
        assert client.ping() == "Healthy"
        assert client.list() == []
        api = [f"Bearer {daemon.token('API')}"]
        ask(HTTPConnection(*daemon.host_and_port("management")), "GET", "/token?type=management", api)
        assert client.list() == []
