"""Plug-ins as an operator loads them: the examples of docs/examples/plugins, installed and named, or refused."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from harness.commands import ROOT
from harness.daemon import Daemon
from harness.surfaces import RestSurface, open_channel

from torchd_archiver.packing import PackRequest, pack

EXAMPLES = ROOT / "docs" / "examples" / "plugins"
BROKEN = """
from torchd_server.surfaces.rest.router import Endpoint


async def action(request, variables):
    raise NotImplementedError


def open_to_all(served):
    return {"inference": [Endpoint(("GET",), "/hole", None, action, "hole", "no access declared")]}


def wrong_port(served):
    return {"metric": []}


def no_guard(settings):
    return None


class Guard:
    def __init__(self, settings):
        pass

    def __len__(self):
        return 0


class AsyncGuard(Guard):
    async def check(self, access, authorization):
        raise PermissionError


class PoliteGuard(Guard):
    def check(self, access, authorization):
        return authorization == ["Bearer sesame"]


class FailingGuard(Guard):
    def check(self, access, authorization):
        return {}[access]
"""


def installed(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with the examples and some broken plug-ins in it, as an installer would leave it."""
    folder = tmp_path / "site"
    info = folder / "torchd_example_plugins-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "torchd_example_plugins").symlink_to(EXAMPLES / "torchd_example_plugins")
    (folder / "broken_plugins.py").write_text(BROKEN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchd-example-plugins\nVersion: 1.0\n")
    groups = tomllib.loads((EXAMPLES / "pyproject.toml").read_text())["project"]["entry-points"]
    groups["torchd.endpoints"] |= {
        "open-to-all": "broken_plugins:open_to_all",
        "wrong-port": "broken_plugins:wrong_port",
        "gone": "no_such_module:endpoints",
    }
    groups["torchd.auth"] |= {
        "no-guard": "broken_plugins:no_guard",
        "async": "broken_plugins:AsyncGuard",
        "polite": "broken_plugins:PoliteGuard",
        "failing": "broken_plugins:FailingGuard",
    }
    groups["torchd.batching"] |= {"full": "torchd_example_plugins.half_full:HalfFull"}
    lines = [
        line
        for group, points in groups.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def daemon_with(tmp_path: Path, *names: str, key: str = "") -> Daemon:
    store = tmp_path / "store"
    store.mkdir()
    handler = ROOT / "tests" / "models" / "mirror" / "handler.py"
    pack(PackRequest(model_name="mirror", version="1.0", handler=str(handler), export_path=store))
    arguments = ["--plugins", *names] if names else []
    daemon = Daemon(tmp_path, store=store, arguments=arguments)
    paths = [daemon.environment["PYTHONPATH"], str(installed(tmp_path))]
    daemon.environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    if key:
        daemon.environment["EXAMPLE_KEY"] = key
    return daemon


def test_a_named_plug_in_adds_an_endpoint_and_a_rule_of_batching(tmp_path: Path) -> None:
    with daemon_with(tmp_path, "sagemaker", "half-full") as daemon:
        rest = RestSurface(daemon)
        told = rest.request("GET", "/execution-parameters").json()
        assert told["BatchStrategy"] == "MULTI_RECORD"
        assert "/execution-parameters" in rest.request("OPTIONS", "/").json()["paths"]
        rest.register("mirror.mar", initial_workers=1)
        assert rest.request("PUT", "/models/mirror?batch_wait=half-full&batch_size=4", port="management").error is None
        assert rest.describe("mirror").json()[0]["batchWait"] == "half-full"
        assert rest.predict("mirror", b"{}").json()["parts"] == {"body": {}}


def test_an_installed_plug_in_that_is_not_named_is_not_loaded(tmp_path: Path) -> None:
    """E26."""
    with daemon_with(tmp_path) as daemon:
        rest = RestSurface(daemon)
        assert rest.request("GET", "/execution-parameters").status == 404
        rest.register("mirror.mar", initial_workers=0)
        refused = rest.request("PUT", "/models/mirror?batch_wait=half-full", port="management").error
        assert refused is not None
        assert (refused.code, "half-full" in refused.message) == (400, True)


def test_a_guard_decides_instead_of_the_tokens(tmp_path: Path) -> None:
    with daemon_with(tmp_path, "key-in-environment", "sagemaker", key="sesame") as daemon:
        rest = RestSurface(daemon)
        right, wrong = {"Authorization": "Bearer sesame"}, {"Authorization": "Bearer other"}
        assert rest.request("GET", "/models", port="management", headers=right).status == 200
        assert rest.request("GET", "/models", port="management", headers=wrong).status == 401
        assert rest.request("POST", "/predictions/mirror", b"").status == 401
        assert rest.request("GET", "/execution-parameters").status == 200
        for name in ("grpc_inference", "grpc_management"):
            for shown, code in (("sesame", "UNIMPLEMENTED"), ("other", "UNAUTHENTICATED"), ("", "UNAUTHENTICATED")):
                assert end_of(daemon, name, "/no.such.Service/Method", shown) == code
            assert end_of(daemon, name, "/grpc.health.v1.Health/Check", "") == "OK"


@pytest.mark.parametrize("name", ["async", "polite", "failing"])
def test_a_guard_that_does_not_return_none_lets_nobody_in(tmp_path: Path, name: str) -> None:
    """S23: of the mistakes a plug-in's author may make none opens the server."""
    with daemon_with(tmp_path, name) as daemon:
        rest = RestSurface(daemon)
        for shown in ("sesame", "other"):
            given = {"Authorization": f"Bearer {shown}"}
            assert rest.request("GET", "/models", port="management", headers=given).status == 401
            assert end_of(daemon, "grpc_management", "/no.such.Service/Method", shown) == "UNAUTHENTICATED"


def end_of(daemon: Daemon, port: str, method: str, token: str) -> str:
    """The code a call with an empty message ends with."""
    with open_channel(daemon, port) as channel:
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        call = channel.unary_unary(method).future(b"", metadata=metadata, timeout=20.0)
        return str(call.code().name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nobody", "expected an installed plug-in: "),
        ("gone", "no_such_module"),
        ("open-to-all", "needs an Access"),
        ("wrong-port", "not for 'metric'"),
        ("full", "another name than adaptive, full"),
        ("key-in-environment", "EXAMPLE_KEY"),
        ("no-guard", "not NoneType"),
    ],
)
def test_a_plug_in_that_will_not_do_stops_the_start(tmp_path: Path, name: str, words: str) -> None:
    """A server without the guard or the endpoints it was told to have must not serve."""
    daemon = daemon_with(tmp_path, name)
    daemon.launch()
    assert not daemon.wait_ready_or_gone()
    assert daemon.wait() != 0
    assert words in daemon.log
