"""Which archives the store gives out, and which it refuses before anything is read."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import zipfile
from pathlib import Path

import pytest

from torchd_archiver.packing import PackRequest, pack
from torchd_server import errors
from torchd_server.bounded_yaml import CONFIG_ALIASES, CONFIG_BYTES
from torchd_server.store import ModelStore, UnpackedModel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with one archive."""
    store = tmp_path / "store"
    store.mkdir()
    packed(store, "good")
    return store


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> ModelStore:
    """The store over it."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return ModelStore(folder, scratch)


def packed(store: Path, name: str, config: str | None = None, archive_format: str = "default") -> Path:
    handler = store.parent / "handler.py"
    handler.write_text("def handle(data, context):\n    return data\n")
    config_file = None
    if config is not None:
        config_file = store.parent / "model-config.yaml"
        config_file.write_text(config)
    return pack(
        PackRequest(
            name, "1.0", str(handler), config_file=config_file, export_path=store, archive_format=archive_format
        )
    )


def fetch(store: ModelStore, url: str) -> UnpackedModel:
    return asyncio.run(store.fetch(url))


def test_an_archive_is_unpacked_into_a_folder_of_its_own(store: ModelStore, tmp_path: Path) -> None:
    first, second = fetch(store, "good.mar"), fetch(store, "good.mar")
    assert (first.model_name, first.version, first.handler, first.source) == ("good", "1.0", "handler.py", "good.mar")
    assert first.directory != second.directory
    assert (first.directory / "handler.py").is_file()
    assert first.directory.is_relative_to(tmp_path / "scratch")


def test_dropping_removes_what_was_unpacked_and_nothing_else(store: ModelStore, folder: Path) -> None:
    first, second = fetch(store, "good.mar"), fetch(store, "good.mar")
    asyncio.run(store.drop(first))
    asyncio.run(store.drop(first))
    assert not first.directory.exists()
    assert (second.directory / "handler.py").is_file()
    assert (folder / "good.mar").is_file()


def test_a_folder_of_the_store_is_served_in_place_and_never_removed(store: ModelStore, folder: Path) -> None:
    packed(folder, "plain", archive_format="no-archive")
    model = fetch(store, "plain")
    assert (model.directory, model.is_ours) == (folder / "plain", False)
    asyncio.run(store.drop(model))
    assert (folder / "plain" / "handler.py").is_file()
    assert fetch(store, "plain/").directory == folder / "plain"


def test_the_names_are_the_archives_in_order(store: ModelStore, folder: Path) -> None:
    packed(folder, "a", archive_format="tgz")
    packed(folder, "plain", archive_format="no-archive")
    (folder / "notes.txt").write_text("no archive")
    (folder / "empty").mkdir()
    assert store.names() == ["a.tar.gz", "good.mar", "plain"]


def test_without_a_store_there_is_nothing(tmp_path: Path) -> None:
    nothing = ModelStore(None, tmp_path)
    assert nothing.names() == []
    with pytest.raises(errors.ArchiveNotFound, match="--model-store"):
        fetch(nothing, "good.mar")


def test_a_store_that_has_gone_is_a_refusal_not_a_crash(tmp_path: Path) -> None:
    with pytest.raises(errors.TorchdError):
        fetch(ModelStore(tmp_path / "gone", tmp_path), "good.mar")


def test_a_missing_archive_is_named_beside_what_there_is(store: ModelStore) -> None:
    with pytest.raises(errors.ArchiveNotFound, match=r"bad\.mar.*good\.mar"):
        fetch(store, "bad.mar")
    with pytest.raises(errors.BadRequest, match="url is required"):
        fetch(store, "")


S05 = [
    "../good.mar",
    "..",
    ".",
    "./",
    "a/..",
    "a/../good.mar",
    "good.mar/..",
    "....//good.mar",
    "..%5cgood.mar",
    "..\\good.mar",
    "%2e%2e/good.mar",
    "%252e%252e/good.mar",
    ";../good.mar",
    "good.mar\0",
    "file:///store/../etc/passwd",
    "http://127.0.0.1:1/good.mar",
    "s3://bucket/good.mar",
    "x" * 10_000,
    "\udcff.mar",
    "\r\n",
    "~root",
    "/",
    "//",
    "/etc/passwd",
    "good.mar/handler.py",
]


@pytest.mark.parametrize("url", S05, ids=lambda url: ascii(url)[:24])
def test_a_url_that_is_no_name_in_the_store_is_refused(store: ModelStore, tmp_path: Path, url: str) -> None:
    """S05: with an error of ours, and nothing left behind."""
    (tmp_path / "good.mar").write_bytes(b"outside")
    with pytest.raises((errors.NotFound, errors.BadRequest, errors.ArchiveInvalid)):
        fetch(store, url)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_what_is_no_regular_file_inside_the_store_is_refused(store: ModelStore, folder: Path, tmp_path: Path) -> None:
    """S06: links out of the store, loops, FIFOs, sockets, devices; none of them blocks."""
    outside = tmp_path / "outside"
    outside.mkdir()
    packed(outside, "evil")
    (folder / "evil_link.mar").symlink_to(outside / "evil.mar")
    (folder / "folder_link").symlink_to(outside)
    (folder / "loop.mar").symlink_to("loop.mar")
    (folder / "null.mar").symlink_to("/dev/null")
    os.mkfifo(folder / "fifo.mar")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.mar"))
        for name in ("evil_link.mar", "folder_link", "loop.mar", "null.mar", "fifo.mar", "socket.mar"):
            with pytest.raises((errors.NotFound, errors.ArchiveInvalid)):
                fetch(store, name)
    with pytest.raises(errors.UrlNotAllowed, match="is a path"):
        fetch(store, str(outside / "evil.mar"))


def test_a_link_inside_the_store_is_followed(store: ModelStore, folder: Path) -> None:
    (folder / "current.mar").symlink_to("good.mar")
    assert fetch(store, "current.mar").model_name == "good"


def test_model_config_yaml_is_read(store: ModelStore, folder: Path) -> None:
    packed(folder, "configured", "minWorkers: 2\nhandler:\n  words: [a, b]\n")
    assert fetch(store, "configured.mar").config == {"minWorkers": 2, "handler": {"words": ["a", "b"]}}


def laughs(levels: int, each: int) -> str:
    lines = ["l0: &l0 [ha]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * each)}]" for n in range(1, levels + 1)]
    return "\n".join(lines)


def merges(levels: int) -> str:
    lines = ["m0: &m0 {a: 1, b: 2}"]
    lines += [f"m{n}: &m{n}\n  <<: [*m{n - 1}, *m{n - 1}]" for n in range(1, levels + 1)]
    return "\n".join(lines)


S17 = {
    "code": '!!python/object/apply:os.system ["touch M"]',
    "a python name": "a: !!python/name:os.system",
    "billion laughs": laughs(9, 9),
    "laughs within the alias limit": laughs(13, 3),
    "a merge-key bomb": merges(18),
    "too many aliases": "a: &a 1\nb: [" + ", ".join(["*a"] * (CONFIG_ALIASES + 1)) + "]",
    "an alias of itself": "a: &a [*a]",
    "an unknown alias": "a: *b",
    "depth": "a: " + "[" * 20_000,
    "a closed depth": "a: " + "[" * 20_000 + "]" * 20_000,
    "size": "a: " + "x" * CONFIG_BYTES,
    "a list": "- a\n- b",
    "a word": "hello",
    "keys that are no names": "1: a",
    "keys that JSON does not have": "a:\n  2020-01-01: b",
    "no yaml": "a: [",
    "control characters": "a: \x07",
    "two documents": "a: 1\n---\nb: 2",
}


@pytest.mark.parametrize("what", S17)
def test_a_hostile_model_config_is_refused(store: ModelStore, folder: Path, tmp_path: Path, what: str) -> None:
    """S17: what is accepted can be told to a worker (`config_json`), at a price that the file's size bounds."""
    packed(folder, "hostile", S17[what])
    with pytest.raises(errors.ArchiveInvalid, match="model-config"):
        fetch(store, "hostile.mar")
    assert not Path("M").exists()
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("config", ["", "# nothing\n", "{}"])
def test_an_empty_model_config_is_no_settings(store: ModelStore, folder: Path, config: str) -> None:
    packed(folder, "empty", config)
    assert fetch(store, "empty.mar").config == {}


def test_aliases_within_the_limit_are_fine(store: ModelStore, folder: Path) -> None:
    packed(folder, "aliases", "a: &a {x: 1}\nb: [" + ", ".join(["*a"] * CONFIG_ALIASES) + "]")
    assert len(fetch(store, "aliases.mar").config["b"]) == CONFIG_ALIASES


def test_an_archive_that_names_no_handler_gets_the_servers(folder: Path, tmp_path: Path) -> None:
    """A06: no manifest at all, but a server with a handler for such archives (default_service_handler)."""
    (tmp_path / "scratch").mkdir()
    with zipfile.ZipFile(folder / "bare.mar", "w") as archive:
        archive.writestr("weights.bin", b"x")
    model = fetch(ModelStore(folder, tmp_path / "scratch", default_handler="my_handler:handle"), "bare.mar")
    assert (model.model_name, model.version, model.handler) == ("", "1.0", "my_handler:handle")
    shutil.rmtree(model.directory)
    own = fetch(ModelStore(folder, tmp_path / "scratch", default_handler="my_handler:handle"), "good.mar")
    assert own.handler == "handler.py"


@pytest.mark.parametrize(
    ("runtime", "message"),
    [("ruby", "Runtime is not defined or invalid"), ("LSP", "C\\+\\+ backend")],
)
def test_a_runtime_that_is_not_here_is_refused(
    store: ModelStore, folder: Path, tmp_path: Path, runtime: str, message: str
) -> None:
    """5.1."""
    with zipfile.ZipFile(folder / "other.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": runtime, "model": {"modelName": "m"}}))
    with pytest.raises(errors.ArchiveInvalid, match=message):
        fetch(store, "other.mar")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_folder_that_only_wraps_another_stands_for_it(store: ModelStore, folder: Path) -> None:
    packed(folder, "plain", archive_format="no-archive")
    (folder / "wrapper").mkdir()
    (folder / "plain").rename(folder / "wrapper" / "plain")
    assert fetch(store, "wrapper").directory == folder / "wrapper" / "plain"
