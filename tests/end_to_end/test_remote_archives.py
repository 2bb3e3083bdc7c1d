"""Registering from URLs as TorchServe's users do, and what the secure posture says to it (10.3, E06, S07)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from harness.daemon import Daemon
from harness.surfaces import SURFACES, GrpcSurface, RestSurface

from torchd_archiver.packing import PackRequest, pack

HANDLER = "def handle(data, context):\n    return [bytes(row['body'] or b'') for row in data] if data else None\n"


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """A web server with one archive, `echo.mar`."""
    folder = tmp_path / "site"
    folder.mkdir()
    (tmp_path / "echo_handler.py").write_text(HANDLER)
    pack(PackRequest("echo", "1.0", str(tmp_path / "echo_handler.py"), export_path=folder))
    (folder / "junk.mar").write_text("<html>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """An empty model store."""
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


def files(store: Path) -> list[str]:
    return sorted(path.name for path in store.iterdir())


@pytest.fixture
def torchserve(tmp_path: Path, store: Path) -> Iterator[Daemon]:
    """TorchServe's posture, whose default lets any http URL in."""
    with Daemon(tmp_path / "daemon", store=store, command="torchserve", arguments=["--enable-model-api"]) as daemon:
        yield daemon


def test_an_archive_comes_from_a_url_and_goes_with_its_model(torchserve: Daemon, store: Path, site: str) -> None:
    """10.3: downloaded into the model store, deleted by unregister."""
    rest = RestSurface(torchserve)
    answer = rest.register(f"{site}/echo.mar", initial_workers=1)
    assert answer.sentence == 'Model "echo" Version: 1.0 registered with 1 initial workers'
    assert files(store) == ["echo.mar"]
    assert rest.predict("echo", b"hello").body == b"hello"
    [model] = rest.models().json()["models"]
    assert model == {"modelName": "echo", "modelUrl": f"{site}/echo.mar"}

    again = rest.register(f"{site}/echo.mar", model_name="again").error
    assert again is not None
    assert (again.code, again.message) == (500, "Model file already exists echo.mar")
    rest.unregister("echo")
    assert files(store) == []


def test_a_url_of_the_command_line_may_have_a_query(tmp_path: Path, store: Path, site: str) -> None:
    with Daemon(
        tmp_path / "daemon", store=store, models=(f"named={site}/echo.mar?token=a=b",), command="torchserve"
    ) as daemon:
        [model] = RestSurface(daemon).models().json()["models"]
        assert model == {"modelName": "named", "modelUrl": f"{site}/echo.mar?token=a=b"}


REFUSED = [
    ("none.mar", 400, "FAILED_PRECONDITION", "Failed to download archive from: {url}"),
    ("junk.mar", 400, "INVALID_ARGUMENT", "archive '{url}': is neither a zip"),
]


@pytest.mark.parametrize("surface", ["grpc", "rest"])
@pytest.mark.parametrize(("name", "http", "grpc", "sentence"), REFUSED)
def test_what_cannot_be_registered_leaves_nothing_in_the_store(
    torchserve: Daemon, store: Path, site: str, surface: str, name: str, http: int, grpc: str, sentence: str
) -> None:
    """S07: registering once more by the bare name finds nothing, the second stage of CVE-2024-35198."""
    with SURFACES[surface](torchserve) as client:
        error = client.register(f"{site}/{name}").error
        assert error is not None
        assert error.code == {"grpc": grpc, "rest": http}[surface]
        assert error.message.startswith(sentence.format(url=f"{site}/{name}"))
        second = client.register(name).error
        assert second is not None
        assert second.reason == "ARCHIVE_NOT_FOUND"
    assert files(store) == []


@pytest.mark.parametrize("url", ["http://169.254.169.254/x.mar", "http://[fe80::1]/x.mar", "ftp://127.0.0.1/x.mar"])
def test_the_metadata_service_is_out_of_reach_by_default(torchserve: Daemon, url: str) -> None:
    """S01: TorchServe's own default would fetch it."""
    error = RestSurface(torchserve).register(url).error
    assert error is not None
    assert (error.code, error.reason) == (404, "URL_NOT_ALLOWED")
    assert error.message.startswith(f"Given URL {url} does not match any allowed URL(s)")


def test_the_secure_posture_takes_no_url_at_all(tmp_path: Path, store: Path, site: str) -> None:
    with Daemon(tmp_path / "daemon", store=store) as daemon:
        with GrpcSurface(daemon) as client:
            for url in (f"{site}/echo.mar", f"file://{tmp_path}/site/echo.mar"):
                error = client.register(url).error
                assert error is not None
                assert (error.code, error.reason) == ("PERMISSION_DENIED", "URL_NOT_ALLOWED")
    assert files(store) == []


def test_a_start_clears_the_store_of_downloads_that_were_broken_off(tmp_path: Path, store: Path) -> None:
    part = store / ".downloading-abc"
    part.write_bytes(b"half")
    os.utime(part, (0, 0))
    with Daemon(tmp_path / "daemon", store=store) as daemon:
        assert files(store) == []
        assert ".downloading-abc" in daemon.log


def test_a_killed_server_comes_up_again_with_the_models_it_had_fetched(tmp_path: Path, store: Path, site: str) -> None:
    """D07: the file it left stands where it would download to; a supervisor starts it with the same command."""
    for _ in range(2):
        daemon = Daemon(tmp_path / "daemon", store=store, command="torchserve", models=(f"{site}/echo.mar",)).start()
        assert "was not registered" not in daemon.log
        assert RestSurface(daemon).request("GET", "/models/echo", port="management").status == 200
        daemon.kill()
    assert "is not fetched: the model store has echo.mar" in daemon.log
