"""Packing: torch-model-archiver's semantics, all at once, never along links, and read back by our own reader."""

import json
import os
import tarfile
import zipfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchd_archiver.errors import ArchiveInvalid, PackFailed
from torchd_archiver.mar import open_archive, unpack
from torchd_archiver.packing import FORMATS, PackRequest, pack

NOON = datetime(2025, 1, 2, 12, 0, 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with everything a model may bring."""
    folder = tmp_path / "model"
    for name in ("handler.py", "net.py", "w.pt", "reqs.txt", "conf.yaml", "a.json", "b.json", "tok/vocab", "tok/sub/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}\n")
    return folder


@pytest.fixture
def request_(model: Path, tmp_path: Path) -> PackRequest:
    return PackRequest("m", "1.0", str(model / "handler.py"), export_path=tmp_path / "store", created_on=NOON)


def names(archive: Path) -> set[str]:
    with open_archive(archive) as opened:
        return set(opened.files) - {"MAR-INF/MANIFEST.json"}


@pytest.mark.parametrize("archive_format", FORMATS)
def test_every_format_holds_the_same_files(
    request_: PackRequest, model: Path, tmp_path: Path, archive_format: str
) -> None:
    request = replace(
        request_,
        archive_format=archive_format,
        serialized_file=model / "w.pt",
        model_file=model / "net.py",
        requirements_file=model / "reqs.txt",
        config_file=model / "conf.yaml",
        extra_files=(str(model / "*.json"), str(model / "tok")),
    )
    written = pack(request)
    assert written == tmp_path / "store" / f"m{FORMATS[archive_format][0]}"
    assert os.listdir(tmp_path / "store") == [written.name]
    expected = {"handler.py", "net.py", "w.pt", "reqs.txt", "conf.yaml", "a.json", "b.json", "vocab", "sub/x"}
    assert names(written) == expected
    with open_archive(written) as opened:
        manifest, folder = opened.manifest, opened.unpack(tmp_path / "out")
    assert (folder / "sub/x").read_text() == "content of tok/sub/x\n"
    assert (manifest.serialized_file, manifest.config_file, manifest.created_on) == (
        "w.pt",
        "conf.yaml",
        "02/01/2025 12:00:00",
    )


def test_the_same_input_gives_the_same_bytes(request_: PackRequest, model: Path) -> None:
    request = replace(request_, extra_files=(str(model / "tok"), str(model / "?.json")), force=True)
    for archive_format in ("default", "tgz"):
        first = pack(replace(request, archive_format=archive_format)).read_bytes()
        os.utime(model / "a.json", (1, 1))
        assert pack(replace(request, archive_format=archive_format)).read_bytes() == first


def test_a_tgz_holds_one_folder_named_after_the_model(request_: PackRequest) -> None:
    with tarfile.open(pack(replace(request_, archive_format="tgz"))) as tar:
        assert tar.getnames() == ["m/handler.py", "m/MAR-INF/MANIFEST.json"]


def test_store_and_default_differ_in_compression(request_: PackRequest) -> None:
    for archive_format, method in (("default", zipfile.ZIP_DEFLATED), ("zip-store", zipfile.ZIP_STORED)):
        with zipfile.ZipFile(pack(replace(request_, archive_format=archive_format, force=True))) as archive:
            assert {info.compress_type for info in archive.infolist()} == {method}
            assert archive.testzip() is None


@pytest.mark.parametrize(
    ("handler", "recorded"),
    [
        ("handler.py", "handler.py"),
        ("handler", "handler"),
        ("handler:run", "handler:run"),
        ("handler.py:run", "handler.py:run"),
    ],
)
def test_a_handler_is_a_file_with_or_without_suffix_and_function(
    request_: PackRequest, model: Path, handler: str, recorded: str
) -> None:
    written = pack(replace(request_, handler=f"{model}/{handler}"))
    assert names(written) == {"handler.py"}
    with open_archive(written) as opened:
        assert opened.manifest.handler == recorded


def test_a_default_handler_brings_no_file(request_: PackRequest) -> None:
    assert names(pack(replace(request_, handler="image_classifier"))) == set()


def test_caches_and_hidden_folders_are_left_out_hidden_files_are_not(request_: PackRequest, model: Path) -> None:
    for name in ("__MACOSX/x", "__pycache__/x", ".git/x", ".hidden"):
        (model / "tok" / name).parent.mkdir(exist_ok=True)
        (model / "tok" / name).write_text("x")
    assert names(pack(replace(request_, extra_files=(str(model / "tok"),)))) == {
        "handler.py",
        "vocab",
        "sub/x",
        ".hidden",
    }


def test_an_old_manifest_in_a_packed_folder_gives_way_to_the_new(request_: PackRequest, model: Path) -> None:
    first = pack(replace(request_, archive_format="no-archive", extra_files=(str(model / "tok"),)))
    with open_archive(pack(replace(request_, version="2.0", extra_files=(str(first),)))) as again:
        assert again.manifest.model_version == "2.0"


def test_a_pattern_without_match_is_a_warning_and_a_missing_file_an_error(
    request_: PackRequest, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack(replace(request_, extra_files=(str(model / "*.nope"),)))
    assert "match no file" in caplog.text
    with pytest.raises(PackFailed, match=r"gone\.json' does not exist"):
        pack(replace(request_, extra_files=(str(model / "gone.json"),), force=True))


def test_an_existing_archive_is_overwritten_only_by_force(request_: PackRequest) -> None:
    for archive_format in ("default", "no-archive"):
        request = replace(request_, archive_format=archive_format)
        written = pack(request)
        with pytest.raises(PackFailed, match="already exists; give --force"):
            pack(request)
        assert pack(replace(request, version="2.0", force=True)) == written
        with open_archive(written) as opened:
            assert opened.manifest.model_version == "2.0"
    assert sorted(os.listdir(request_.export_path)) == ["m", "m.mar"]


def test_a_failure_leaves_the_old_archive_and_nothing_else(request_: PackRequest, model: Path) -> None:
    before = pack(request_).read_bytes()

    def fail(count: int, total: int) -> None:
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        pack(replace(request_, force=True), fail)
    assert os.listdir(request_.export_path) == ["m.mar"]
    assert (request_.export_path / "m.mar").read_bytes() == before


def test_links_are_not_followed_unless_asked(request_: PackRequest, model: Path, tmp_path: Path) -> None:
    """S12 on the packing side: a link in a folder must not pull a secret into the archive."""
    (tmp_path / "secret").write_text("token")
    (model / "tok" / "sub" / "link").symlink_to(tmp_path / "secret")
    for extra in (model / "tok", model / "tok/sub/link", model / "tok/sub/l*"):
        with pytest.raises(PackFailed, match="is a symbolic link"):
            pack(replace(request_, extra_files=(str(extra),)))
    (model / "linked.pt").symlink_to("w.pt")
    with pytest.raises(PackFailed, match="is a symbolic link"):
        pack(replace(request_, serialized_file=model / "linked.pt"))
    written = pack(replace(request_, extra_files=(str(model / "tok"),), follow_links=True))
    assert names(written) == {"handler.py", "vocab", "sub/x", "sub/link"}


def test_a_linked_folder_is_never_walked(request_: PackRequest, model: Path) -> None:
    (model / "tok" / "loop").symlink_to(model)
    with pytest.raises(PackFailed, match="is a link to a folder"):
        pack(replace(request_, extra_files=(str(model / "tok"),), follow_links=True))


def test_a_fifo_among_the_inputs_is_refused(request_: PackRequest, model: Path) -> None:
    os.mkfifo(model / "tok" / "pipe")
    with pytest.raises(PackFailed, match="neither a file nor a folder"):
        pack(replace(request_, extra_files=(str(model / "tok"),)))


def test_two_files_for_one_name_are_refused_unless_equal(request_: PackRequest, model: Path) -> None:
    (model / "tok" / "a.json").write_text("other")
    extra = (str(model / "a.json"), str(model / "tok"))
    with pytest.raises(PackFailed, match=r"would both become 'a\.json'"):
        pack(replace(request_, extra_files=extra))
    (model / "tok" / "a.json").write_bytes((model / "a.json").read_bytes())
    assert "a.json" in names(pack(replace(request_, extra_files=extra)))


@pytest.mark.parametrize("field", ["model_name", "version"])
@pytest.mark.parametrize("value", ["../x", "a b", "", "-rf", "a\n"])
def test_a_name_or_version_no_server_takes_is_refused_before_anything_is_written(
    request_: PackRequest, field: str, value: str
) -> None:
    """S16."""
    with pytest.raises(ArchiveInvalid, match="does not fit"):
        pack(replace(request_, **{field: value}))  # type: ignore[arg-type]
    assert not request_.export_path.exists()


def test_a_file_name_no_reader_takes_is_refused_before_anything_is_written(request_: PackRequest, model: Path) -> None:
    (model / "tok" / "back\\slash").write_text("x")
    with pytest.raises(ArchiveInvalid, match="backslash"):
        pack(replace(request_, extra_files=(str(model / "tok"),)))
    assert not request_.export_path.exists()


def test_the_manifest_has_torch_model_archivers_shape(request_: PackRequest) -> None:
    with zipfile.ZipFile(pack(request_)) as archive:
        found = json.loads(archive.read("MAR-INF/MANIFEST.json"))
    assert found == {
        "createdOn": "02/01/2025 12:00:00",
        "runtime": "python",
        "model": {"modelName": "m", "handler": "handler.py", "modelVersion": "1.0"},
        "archiverVersion": "0.12.0",
    }


def test_progress_hears_of_every_byte(request_: PackRequest, model: Path) -> None:
    heard: list[tuple[int, int]] = []
    pack(request_, lambda count, total: heard.append((count, total)))
    size = (model / "handler.py").stat().st_size
    assert sum(count for count, _ in heard) == size
    assert {total for _, total in heard} == {size}


file_names = st.text("abcXYZ019_-é", min_size=1, max_size=8).map(lambda name: f"f{name}")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(file_names, st.binary(max_size=2000), max_size=6).filter(
        lambda files: len({name.casefold() for name in files}) == len(files)
    ),
    st.sampled_from(sorted(FORMATS)),
)
def test_what_is_packed_is_unpacked_unchanged(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], archive_format: str
) -> None:
    place = tmp_path_factory.mktemp("round")
    (place / "in" / "sub").mkdir(parents=True)
    for name, data in files.items():
        (place / "in" / "sub" / name).write_bytes(data)
    request = PackRequest("m", "1", "base_handler", extra_files=(str(place / "in"),), export_path=place)
    written = pack(replace(request, archive_format=archive_format))
    with open_archive(written) as opened:
        folder = opened.unpack(place / "out")
    below = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del below["MAR-INF/MANIFEST.json"]
    assert below == {f"sub/{name}": data for name, data in files.items()}


def test_unpacking_answers_the_manifest_that_was_packed(request_: PackRequest, tmp_path: Path) -> None:
    manifest = unpack(pack(request_), tmp_path / "out")
    assert (manifest.model_name, manifest.model_version, manifest.runtime) == ("m", "1.0", "python")
