"""Downloads from a real server on this machine, good and bad (S01, S03, S04, S07, S08, S09)."""

from __future__ import annotations

import asyncio
import fcntl
import os
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

import pytest

from torchd_server import errors
from torchd_server.download import PART_PREFIX, DownloadLimits, Downloads, resolve
from torchd_server.url_policy import UrlPolicy

Page = Callable[[BaseHTTPRequestHandler], None]
BODY = os.urandom(300_000)
PRIVATE = UrlPolicy(["file://.*", "https?://.*"], private_hosts=True)


@contextmanager
def serving(*, tls: Path | None = None, **pages: Page) -> Iterator[tuple[str, list[BaseHTTPRequestHandler]]]:
    """A web server: its address, and the requests it has seen."""
    seen: list[BaseHTTPRequestHandler] = []

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self)
            page = pages.get(self.path.strip("/").partition(".")[0])
            try:
                if page is None:
                    self.send_error(404)
                else:
                    page(self)
            except OSError:
                pass  # the client has gone

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.daemon_threads = False
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def good(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(BODY)))
    request.send_header("Content-Disposition", "attachment; filename=../evil.mar")
    request.end_headers()
    request.wfile.write(BODY)


def to(location: str, status: int = 302) -> Page:
    def page(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Location", location)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return page


def fetch(downloads: Downloads, url: str, folder: Path) -> Path:
    return asyncio.run(downloads.fetch(url, folder))


def test_a_file_comes_whole_under_the_name_in_its_url(tmp_path: Path) -> None:
    with serving(good=good) as (site, _):
        path = fetch(Downloads(PRIVATE), f"{site}/good.mar", tmp_path)
    assert path == tmp_path / "good.mar"
    assert path.read_bytes() == BODY
    assert os.listdir(tmp_path) == ["good.mar"]


def test_a_file_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    """TorchServe's 500 "Model file already exists"; asked before anything is fetched."""
    (tmp_path / "good.mar").write_text("mine")
    with serving(good=good) as (site, seen):
        with pytest.raises(errors.ArchiveExists, match=r"Model file already exists good\.mar"):
            fetch(Downloads(PRIVATE), f"{site}/good.mar", tmp_path)
    assert seen == []
    assert (tmp_path / "good.mar").read_text() == "mine"


def test_loopback_is_not_connected_to_unless_it_is_named(tmp_path: Path) -> None:
    """S01: not one connection."""
    with serving(good=good) as (site, seen):
        with pytest.raises(errors.UrlNotAllowed):
            fetch(Downloads(UrlPolicy(["https?://.*"])), f"{site}/good.mar", tmp_path)
        assert seen == []
        fetch(Downloads(UrlPolicy([f"{site}/.*"])), f"{site}/good.mar", tmp_path)


def test_a_name_is_resolved_once_and_its_checked_address_connected_to(tmp_path: Path) -> None:
    """S04: a resolver that changes its mind finds nobody who asks again."""
    asked = []
    with serving(good=good) as (site, seen):
        port = int(site.rpartition(":")[2])

        def resolver(host: str, port: int) -> list[str]:
            asked.append(host)
            return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

        fetch(Downloads(PRIVATE, resolver=resolver), f"http://models.example:{port}/good.mar", tmp_path)
        assert [request.headers["Host"] for request in seen] == [f"models.example:{port}"]
    assert asked == ["models.example"]


@pytest.mark.parametrize("addresses", [["169.254.169.254"], ["93.184.216.34", "127.0.0.1"], ["::ffff:127.0.0.1"]])
def test_a_public_name_for_a_private_address_is_refused(tmp_path: Path, addresses: list[str]) -> None:
    """S04: also where only one of several addresses is private."""
    with serving(good=good) as (site, seen):
        port = site.rpartition(":")[2]
        downloads = Downloads(UrlPolicy(["https?://.*"]), resolver=lambda host, port: addresses)
        with pytest.raises(errors.UrlNotAllowed):
            fetch(downloads, f"http://rebind.example:{port}/good.mar", tmp_path)
        assert seen == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_off(tmp_path: Path, status: int) -> None:
    """S03."""
    with serving(good=good, hop=to("/good.mar", status)) as (site, seen):
        with pytest.raises(errors.RedirectNotAllowed):
            fetch(Downloads(PRIVATE), f"{site}/hop.mar", tmp_path)
        assert len(seen) == 1
    assert os.listdir(tmp_path) == []


def test_where_redirects_are_on_each_hop_is_checked(tmp_path: Path) -> None:
    """S03: to what is not listed, to a file, to a metadata service, around in a circle."""
    limits = DownloadLimits(redirects=3)
    pages = {
        "hop": to("/good.mar"),
        "file": to("file:///etc/passwd"),
        "cloud": to("http://169.254.169.254/x.mar"),
        "circle": to("/circle.mar"),
        "nonsense": to("http://a b/"),
        "good": good,
    }
    with serving(**pages) as (site, _):
        assert fetch(Downloads(PRIVATE, limits), f"{site}/hop.mar", tmp_path).name == "hop.mar"
        for page in ("file", "cloud", "circle", "nonsense"):
            with pytest.raises(errors.UrlNotAllowed):
                fetch(Downloads(PRIVATE, limits), f"{site}/{page}.mar", tmp_path)
        with pytest.raises(errors.UrlNotAllowed):
            fetch(Downloads(UrlPolicy([f"{site}/hop.*"]), limits), f"{site}/hop.tgz", tmp_path)
    assert os.listdir(tmp_path) == ["hop.mar"]


def announced(size: int) -> Page:
    def page(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(size))
        request.end_headers()
        request.wfile.write(BODY)

    return page


def endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(BODY)


def packed(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Encoding", "gzip")
    request.end_headers()


@pytest.mark.parametrize(
    ("page", "error"),
    [
        (announced(10 << 30), errors.DownloadTooLarge),
        (endless, errors.DownloadTooLarge),
        (announced(len(BODY) + 1), errors.DownloadFailed),
        (packed, errors.DownloadFailed),
    ],
)
def test_what_is_too_large_or_cut_short_leaves_nothing(
    tmp_path: Path, page: Page, error: type[errors.DownloadFailed]
) -> None:
    """S08, S07."""
    with serving(x=page) as (site, _):
        with pytest.raises(error, match=r"Failed to download archive from: .*x\.mar"):
            fetch(Downloads(PRIVATE, DownloadLimits(bytes=1 << 20)), f"{site}/x.mar", tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("in_headers", [True, False])
def test_a_trickle_ends_with_its_time_and_the_loop_stays_free(tmp_path: Path, in_headers: bool) -> None:
    """S08: one byte now and then, in the headers or in the body."""
    over = threading.Event()

    def trickle(request: BaseHTTPRequestHandler) -> None:
        if in_headers:
            request.wfile.write(b"HTTP/1.1 200 OK\r\nX-")
        else:
            request.send_response(200)
            request.end_headers()
        while not over.wait(0.05):
            request.wfile.write(b"x")

    async def run() -> float:
        lag = 0.0
        task = asyncio.ensure_future(
            Downloads(PRIVATE, DownloadLimits(total=1.0, idle=0.5)).fetch(f"{site}/x.mar", tmp_path)
        )
        while not task.done():
            before = monotonic()
            await asyncio.sleep(0.01)
            lag = max(lag, monotonic() - before)
        with pytest.raises(errors.DownloadTimeout):
            await task
        return lag

    with serving(x=trickle) as (site, _):
        started = monotonic()
        lag = asyncio.run(run())
        took = monotonic() - started
        over.set()
    assert took < 10.0
    assert lag < 1.0, "the event loop waited for the download"
    assert os.listdir(tmp_path) == []


def test_a_server_that_says_nothing_and_one_that_is_not_there(tmp_path: Path) -> None:
    over = threading.Event()
    with serving(x=lambda request: over.wait(20) and None) as (site, _):
        with pytest.raises(errors.DownloadTimeout):
            fetch(Downloads(PRIVATE, DownloadLimits(idle=0.3)), f"{site}/x.mar", tmp_path)
        over.set()
        with pytest.raises(errors.DownloadFailed, match="404"):
            fetch(Downloads(PRIVATE), f"{site}/none.mar", tmp_path)
    with pytest.raises(errors.DownloadFailed, match="cannot be reached"):
        fetch(Downloads(PRIVATE), f"{site}/x.mar", tmp_path)
    with pytest.raises(errors.DownloadFailed, match="cannot be found"):
        fetch(
            Downloads(PRIVATE, resolver=lambda host, port: resolve("no.such.host.invalid", port)),
            f"{site}/x.mar",
            tmp_path,
        )


def test_a_download_nobody_waits_for_is_given_up(tmp_path: Path) -> None:
    """It ends with its caller, long before its own time."""
    over = threading.Event()
    began = threading.Event()

    def page(request: BaseHTTPRequestHandler) -> None:
        began.set()
        over.wait(60)

    async def run() -> None:
        task = asyncio.ensure_future(Downloads(PRIVATE).fetch(f"{site}/x.mar", tmp_path))
        await asyncio.to_thread(began.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with serving(x=page) as (site, _):
        started = monotonic()
        asyncio.run(run())  # waits for its threads
        assert monotonic() - started < 20.0
        over.set()
    assert os.listdir(tmp_path) == []


def test_of_two_downloads_of_one_name_one_wins(tmp_path: Path) -> None:
    async def run() -> list[object]:
        downloads = Downloads(PRIVATE)
        both = (downloads.fetch(f"{site}/good.mar", tmp_path) for _ in range(2))
        return [type(found) for found in await asyncio.gather(*both, return_exceptions=True)]

    with serving(good=good) as (site, _):
        found = asyncio.run(run())
    assert found.count(errors.ArchiveExists) == 1
    assert (tmp_path / "good.mar").read_bytes() == BODY
    assert os.listdir(tmp_path) == ["good.mar"]


def test_a_store_that_is_not_there_is_a_refusal(tmp_path: Path) -> None:
    with serving(good=good) as (site, seen):
        with pytest.raises(errors.DownloadFailed, match="store cannot be written"):
            fetch(Downloads(PRIVATE), f"{site}/good.mar", tmp_path / "gone")
        assert seen == []


def test_no_secret_of_the_environment_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S09: proxies, .netrc and cloud credentials are nothing to a download."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    store = tmp_path / "store"
    store.mkdir()
    for name, value in {
        "NETRC": str(tmp_path / "netrc"),
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "http_proxy": "http://127.0.0.1:9",
        "all_proxy": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    with serving(good=good) as (site, seen):
        fetch(Downloads(PRIVATE), f"{site}/good.mar", store)
    assert set(seen[0].headers) == {"Host", "Accept-Encoding", "User-Agent", "Connection"}


def test_a_file_url_copies_a_regular_file_and_nothing_else(tmp_path: Path) -> None:
    """S06 for files beyond the store: no link, no fifo, no folder."""
    store, outside = tmp_path / "store", tmp_path / "outside"
    store.mkdir()
    outside.mkdir()
    (outside / "x.mar").write_bytes(BODY)
    (outside / "link.mar").symlink_to(outside / "x.mar")
    (outside / "folder.mar").mkdir()
    os.mkfifo(outside / "fifo.mar")
    downloads = Downloads(PRIVATE)
    assert fetch(downloads, f"file://{outside}/x.mar", store).read_bytes() == BODY
    for name in ("link", "folder", "fifo", "missing"):
        with pytest.raises(errors.DownloadFailed):
            fetch(downloads, f"file://{outside}/{name}.mar", store)
    with pytest.raises(errors.UrlNotAllowed):
        fetch(Downloads(UrlPolicy(["https?://.*"])), f"file://{outside}/x.mar", store)
    assert os.listdir(store) == ["x.mar"]


def test_a_bucket_needs_a_pattern_of_its_own_and_its_driver(tmp_path: Path) -> None:
    """TorchServe's default patterns list none; a driver that is not installed is named with the way to get it."""
    with pytest.raises(errors.UrlNotAllowed):
        fetch(Downloads(PRIVATE), "s3://bucket/x.mar", tmp_path)
    if find_spec("gcsfs") is None:
        with pytest.raises(errors.DownloadFailed, match=r"torchd\[remote\]"):
            fetch(Downloads(UrlPolicy(["gs://bucket/.*"])), "gs://bucket/x.mar", tmp_path)


def test_a_bucket_is_read_through_fsspec_within_the_same_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = pytest.importorskip("fsspec.implementations.memory")
    registry = pytest.importorskip("fsspec.registry")
    given: list[dict[str, object]] = []

    class Bucket(memory.MemoryFileSystem):  # type: ignore[misc, name-defined]
        """A driver of s3:// over memory."""

        protocol = "s3"
        cachable = False

        def __init__(self, **options: object) -> None:
            given.append(options)
            super().__init__()

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("s3://").lstrip("/")

        def _open(self, path: str, **options: object) -> object:
            if path.endswith("secret.mar"):
                raise RuntimeError("NoCredentials")
            return super()._open(path, **options)

    monkeypatch.setitem(registry._registry, "s3", Bucket)
    Bucket().pipe("/bucket/x.mar", BODY)
    policy = UrlPolicy(["s3://bucket/.*"])
    path = asyncio.run(Downloads(policy).fetch("s3://bucket/x.mar", tmp_path, s3_sse_kms=True))
    assert path.read_bytes() == BODY
    assert given[-1]["s3_additional_kwargs"] == {"ServerSideEncryption": "aws:kms"}
    path.unlink()
    with pytest.raises(errors.DownloadTooLarge):
        fetch(Downloads(policy, DownloadLimits(bytes=1000)), "s3://bucket/x.mar", tmp_path)
    for name in ("none", "secret"):
        with pytest.raises(errors.DownloadFailed):
            fetch(Downloads(policy), f"s3://bucket/{name}.mar", tmp_path)
    assert os.listdir(tmp_path) == []


def certificate(folder: Path, name: str) -> Path:
    """A key and a certificate for one host name, in one file."""
    file = folder / "site.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    command += ["-addext", f"subjectAltName=DNS:{name}", "-keyout", str(file), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    file.write_text(file.read_text() + (folder / "cert.pem").read_text())
    return file


@pytest.mark.needs("openssl")
def test_https_checks_the_name_whatever_address_was_pinned_and_never_goes_back_to_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S03, S04."""
    store = tmp_path / "store"
    store.mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate(tmp_path, "models.example")))
    limits = DownloadLimits(redirects=3)
    downloads = Downloads(PRIVATE, limits, resolver=lambda host, port: ["127.0.0.1"])
    pages = {"good": good, "down": to("http://models.example/good.mar")}
    with serving(**pages, tls=tmp_path / "site.pem") as (site, _):
        port = site.rpartition(":")[2]
        assert fetch(downloads, f"https://models.example:{port}/good.mar", store).read_bytes() == BODY
        with pytest.raises(errors.RedirectNotAllowed, match="redirects to http"):
            fetch(downloads, f"https://models.example:{port}/down.mar", store)
        with pytest.raises(errors.DownloadFailed, match="ertificate"):
            fetch(downloads, f"https://other.example:{port}/x.mar", store)
    assert os.listdir(store) == ["good.mar"]


def test_what_a_killed_daemon_had_begun_is_cleared_and_what_lives_is_not(tmp_path: Path) -> None:
    """Sixteen gigabytes of a download that SIGKILL broke off would stay in the store for good; a store may be another
    daemon's, too, whose downloads go on."""
    broken, living, young, link = (tmp_path / f"{PART_PREFIX}{name}" for name in ("broken", "living", "young", "link"))
    kept = tmp_path / "kept.mar"
    kept.write_bytes(b"")
    link.symlink_to(kept)
    with broken.open("wb"), young.open("wb"), living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for path in (broken, living, kept):
            os.utime(path, (0, 0))
        asyncio.run(Downloads(PRIVATE).clear(tmp_path))
        assert sorted(tmp_path.iterdir()) == sorted([living, young, link, kept])


def test_a_download_that_runs_is_not_cleared(tmp_path: Path) -> None:
    def stopped_half_way(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(BODY)))
        request.end_headers()
        request.wfile.write(BODY[:1000])
        [part] = tmp_path.glob(f"{PART_PREFIX}*")
        os.utime(part, (0, 0))
        asyncio.run(Downloads(PRIVATE).clear(tmp_path))
        request.wfile.write(BODY[1000:])

    with serving(slow=stopped_half_way) as (address, _):
        fetched = asyncio.run(Downloads(PRIVATE).fetch(f"{address}/slow.mar", tmp_path))
    assert fetched.read_bytes() == BODY
