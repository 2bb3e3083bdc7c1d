"""Reading archives nobody vouches for: every hostile shape is refused by name and leaves nothing behind."""

import gzip
import io
import json
import os
import stat
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchd_archiver.entries import ArchiveLimits
from torchd_archiver.errors import ArchiveInvalid
from torchd_archiver.mar import open_archive, read_manifest, unpack

MANIFEST = json.dumps({"runtime": "python", "model": {"modelName": "m", "handler": "h.py"}}).encode()
GOOD = {
    "h.py": b"def handle(data, context): return data\n",
    "deep/er/w.bin": bytes(3000),
    "MAR-INF/MANIFEST.json": MANIFEST,
}


@dataclass
class Raw:
    """One zip entry, every field of which can lie."""

    name: bytes
    data: bytes = b"x"
    method: int = 0
    flags: int = 0
    mode: int = 0
    local_name: bytes | None = None
    size: int | None = None
    crc: int | None = None
    extra: bytes = b""
    offset: int | None = None


def raw_zip(*entries: Raw, before: bytes = b"", after: bytes = b"", count: int | None = None) -> bytes:
    """A zip written field by field, as zipfile would not write it."""
    body, index = before, b""
    for entry in entries:
        packer = zlib.compressobj(wbits=-15)
        packed = packer.compress(entry.data) + packer.flush() if entry.method == 8 else entry.data
        crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
        size = len(entry.data) if entry.size is None else entry.size
        local_name = entry.name if entry.local_name is None else entry.local_name
        offset = len(body) if entry.offset is None else entry.offset
        common = (entry.flags, entry.method, 0, 0, crc, len(packed), size)
        if entry.offset is None:
            body += struct.pack("<4s5H3L2H", b"PK\3\4", 20, *common, len(local_name), 0) + local_name + packed
        index += struct.pack(
            "<4s6H3L5H2L",
            *(b"PK\1\2", 0x031E, 20, *common, len(entry.name), len(entry.extra), 0, 0, 0, entry.mode << 16, offset),
        )
        index += entry.name + entry.extra
    total = len(entries) if count is None else count
    return body + index + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, total, total, len(index), len(body), 0) + after


def raw_tar(*members: tarfile.TarInfo, content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(content) if member.size else None)
    return buffer.getvalue()


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, *, size: int = 0, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, size, link
    return member


def good_zip(method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in GOOD.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def good_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in GOOD.items():
            member = tar_member(f"m/{name}", size=len(data))
            member.mtime = 1.5  # type: ignore[assignment]  # a fraction makes tarfile write a pax header
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def refused(
    tmp_path: Path, content: bytes, match: str | None = None, limits: ArchiveLimits | None = None
) -> ArchiveInvalid:
    """Asserts that the archive is refused by its name and that nothing is left of the try."""
    path = tmp_path / "a.mar"
    path.write_bytes(content)
    with pytest.raises(ArchiveInvalid, match=match) as caught:
        unpack(path, tmp_path / "out", limits)
    assert caught.value.archive == str(path)
    assert os.listdir(tmp_path) == ["a.mar"]
    assert str(caught.value).isprintable()
    return caught.value


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "make", [good_zip, lambda: good_zip(zipfile.ZIP_STORED), good_tar], ids=["deflated", "stored", "tgz"]
)
def test_a_sound_archive_is_unpacked_for_its_owner_only(tmp_path: Path, make: Callable[[], bytes]) -> None:
    path = tmp_path / "a.mar"
    path.write_bytes(make())
    assert unpack(path, tmp_path / "out").model_name == "m"
    assert files_below(tmp_path / "out") == GOOD
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("*")} == {0o600, 0o700}
    assert sorted(os.listdir(tmp_path)) == ["a.mar", "out"]


def test_the_manifest_is_read_without_unpacking(tmp_path: Path) -> None:
    (tmp_path / "a.mar").write_bytes(good_zip())
    assert read_manifest(tmp_path / "a.mar").handler == "h.py"
    assert os.listdir(tmp_path) == ["a.mar"]


def test_an_archive_without_a_manifest_has_an_empty_one(tmp_path: Path) -> None:
    """A06."""
    (tmp_path / "a.zip").write_bytes(raw_zip(Raw(b"h.py")))
    assert read_manifest(tmp_path / "a.zip").model_name is None


def test_a_zip_written_to_a_stream_is_read(tmp_path: Path) -> None:
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.written = b""

        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            self.written += bytes(data)  # type: ignore[call-overload]
            return len(bytes(data))  # type: ignore[call-overload]

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
        archive.writestr("h.py", b"hello" * 1000)
        archive.writestr("é.txt", b"")
    (tmp_path / "a.mar").write_bytes(pipe.written)
    unpack(tmp_path / "a.mar", tmp_path / "out")
    assert files_below(tmp_path / "out") == {"h.py": b"hello" * 1000, "é.txt": b""}


def test_a_zip64_entry_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.mar", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("w.bin", "w", force_zip64=True) as member:
            member.write(b"weights")
    unpack(tmp_path / "a.mar", tmp_path / "out")
    assert files_below(tmp_path / "out") == {"w.bin": b"weights"}


HOSTILE_NAMES = [
    *("../../m", "/tmp/m", "C:\\m", "C:m", "a\\..\\m", "./../m", "a/../../m", "~/m", "", ".", "..", "a\0b", "a\nb"),
    *(
        "n" * 5000,
        "d/" * 300 + "m",
        "m ",
        "m.",
        "a /m",
        "a//m",
        "./m",
        "a/./m",
        "../outx/m",
        "\x1b[2Jm",
        "a\u202em",
        "//h/m",
    ),
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_in_a_zip_are_refused_not_rewritten(tmp_path: Path, name: str) -> None:
    """S10, S11, A07."""
    refused(tmp_path, raw_zip(Raw(name.encode(), flags=0x800)))


@pytest.mark.parametrize("name", [name for name in HOSTILE_NAMES if name not in ("", ".", "a\0b")])
def test_hostile_names_in_a_tar_are_refused_not_rewritten(tmp_path: Path, name: str) -> None:
    """S10, S11."""
    refused(tmp_path, raw_tar(tar_member(f"m/{name}")))


@pytest.mark.parametrize("name", ["../m", "/m/x", "..", "x"])
def test_a_tar_may_hold_one_folder_only(tmp_path: Path, name: str) -> None:
    """S10: the first component is dropped, but it is not a hole."""
    refused(tmp_path, raw_tar(tar_member(name)))


@pytest.mark.parametrize("flags", [0, 0x800])
def test_names_that_are_not_utf8_are_refused(tmp_path: Path, flags: int) -> None:
    """S10, A07."""
    refused(tmp_path, raw_zip(Raw(b"caf\x82", flags=flags)), "UTF-8")
    member = tar_member("m/caf\udce9")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.USTAR_FORMAT, errors="surrogateescape") as tar:
        tar.addfile(member)
    refused(tmp_path, buffer.getvalue())


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, kind: int) -> None:
    """S12."""
    refused(
        tmp_path, raw_zip(Raw(b"l", b"/etc", mode=kind | 0o777), Raw(b"l/passwd")), "entry 'l': is a link or device"
    )


@pytest.mark.parametrize("kind", [*b"123467S"])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: int) -> None:
    """S12."""
    refused(tmp_path, raw_tar(tar_member("m/l", bytes([kind]), link="/etc"), tar_member("m/l/passwd")), "'m/l'")


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o777, 0o666, 0])
def test_modes_of_the_archive_are_not_taken_over(tmp_path: Path, mode: int) -> None:
    """S12."""
    (tmp_path / "a.mar").write_bytes(raw_zip(Raw(b"d/f", mode=stat.S_IFREG | mode)))
    unpack(tmp_path / "a.mar", tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out/d/f").stat().st_mode) == 0o600


def test_bombs_are_refused_from_the_index_with_flat_memory(tmp_path: Path) -> None:
    """S13."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("b", "w") as member:
        for _ in range(64):
            member.write(bytes(1 << 20))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as written:
        written.addfile(tar_member("m/b", size=64 << 20), io.BytesIO(bytes(64 << 20)))
    tracemalloc.start()
    try:
        refused(tmp_path, stream.getvalue(), "200 to 1")
        refused(tmp_path, tar.getvalue(), "200 to 1")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_entries_that_share_their_data_are_refused(tmp_path: Path) -> None:
    """S13: fifty records on one local entry, which zipfile reads."""
    records = [Raw(b"a"), *(Raw(f"a{n}".encode(), offset=0) for n in range(50))]
    refused(tmp_path, raw_zip(*records), "overlaps")
    inner = raw_zip(Raw(b"b", b"inner"))
    nested = raw_zip(Raw(b"a", inner), Raw(b"b", b"inner", offset=31))
    refused(tmp_path, nested, "overlaps")


def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    """S13."""
    limits = ArchiveLimits(entries=3)
    refused(tmp_path, raw_zip(*(Raw(b"%d" % n) for n in range(4))), "more than 3 entries", limits)
    refused(tmp_path, raw_tar(*(tar_member(f"m/{n}") for n in range(4))), "more than 3 entries", limits)
    refused(tmp_path, raw_zip(Raw(b"a"), Raw(b"b"), count=1), "more in its index")
    refused(tmp_path, raw_zip(Raw(b"a"), count=2), "shorter index")


def test_an_index_that_announces_2_to_the_63_bytes_is_refused(tmp_path: Path) -> None:
    """S13: zip64 with absurd sizes and places."""
    huge = struct.pack("<2H3Q", 1, 24, 1 << 63, 1 << 63, 1 << 63)
    content = raw_zip(Raw(b"a", extra=huge, size=0xFFFFFFFF))
    refused(tmp_path, content)
    index = content.index(b"PK\1\2")
    all_wide = (
        content[: index + 20] + b"\xff" * 8 + content[index + 28 : index + 42] + b"\xff" * 4 + content[index + 46 :]
    )
    refused(tmp_path, all_wide)
    refused(tmp_path, all_wide, limits=ArchiveLimits(file_bytes=1 << 64, total_bytes=1 << 64))


def test_sizes_beyond_the_limits_are_refused(tmp_path: Path) -> None:
    """S13."""
    pair = (Raw(b"a", bytes(600)), Raw(b"b", bytes(600)))
    refused(tmp_path, raw_zip(*pair), "the limit is 500", ArchiveLimits(file_bytes=500))
    refused(tmp_path, raw_zip(*pair), "more than 1000 bytes in total", ArchiveLimits(total_bytes=1000))
    manifest = Raw(b"MAR-INF/MANIFEST.json", bytes(300_000))
    refused(tmp_path, raw_zip(manifest), "the manifest has 300000 bytes")


def test_an_archive_in_an_archive_stays_a_file(tmp_path: Path) -> None:
    """S13."""
    (tmp_path / "a.mar").write_bytes(raw_zip(Raw(b"inner.zip", good_zip())))
    unpack(tmp_path / "a.mar", tmp_path / "out")
    assert files_below(tmp_path / "out") == {"inner.zip": good_zip()}


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (Raw(b"a", bytes(1000), method=8, size=10), "not of the 10 bytes"),
        (Raw(b"a", bytes(10), method=8, size=1000), "not of the 1000 bytes"),
        (Raw(b"a", bytes(10), size=1000), "stored in another size"),
        (Raw(b"a", b"abc", crc=1), "checksum"),
        (Raw(b"a", b"abc", method=8, crc=1), "checksum"),
        (Raw(b"a", b"abc", flags=1), "encrypted"),
        (Raw(b"a", b"abc", flags=0x40), "features"),
        (Raw(b"a", b"abc", method=14), "method 14"),
        (Raw(b"a", b"abc", local_name=b"b"), "another name"),
        (Raw(b"a/", b"abc"), "folder with content"),
        (Raw(b"a/", b"", mode=stat.S_IFREG), "folder by its mode"),
        (Raw(b"a", b"", mode=stat.S_IFDIR), "folder by its mode"),
        (Raw(b"a", extra=struct.pack("<2H", 0x7075, 0)), "extra field"),
        (Raw(b"a", extra=struct.pack("<2H", 0x1234, 9)), "extra field"),
    ],
)
def test_entries_that_lie_about_themselves_are_refused(tmp_path: Path, entry: Raw, match: str) -> None:
    """S14, S15."""
    assert refused(tmp_path, raw_zip(Raw(b"first"), entry), match).entry in ("a", None)


@pytest.mark.parametrize(
    "names",
    [
        (b"a", b"a"),
        ("é".encode(), "e\u0301".encode()),
        (b"README", b"readme"),
        ("straße".encode(), b"STRASSE"),
        (b"a", b"a/b"),
        (b"a/b", b"a"),
        (b"A/b", b"a/c"),
        (b"a/", b"a/"),
        (b"MAR-INF/MANIFEST.json", b"mar-inf/manifest.json"),
        (b"mar-inf/MANIFEST.JSON", b"h.py"),
        (b"MAR-INF/MANIFEST.json", b"MAR-INF/MANIFEST.json"),
    ],
)
def test_names_that_meet_on_some_file_system_are_refused(tmp_path: Path, names: tuple[bytes, bytes]) -> None:
    """S15."""
    refused(tmp_path, raw_zip(*(Raw(name, b"" if name[-1:] == b"/" else b"x", flags=0x800) for name in names)))
    kinds = [tarfile.DIRTYPE if name[-1:] == b"/" else tarfile.REGTYPE for name in names]
    refused(tmp_path, raw_tar(*(tar_member(f"m/{n.decode()}", kind) for n, kind in zip(names, kinds, strict=True))))


def test_two_folders_of_a_tar_cannot_meet_in_one_file(tmp_path: Path) -> None:
    """S15: the first component is dropped."""
    refused(tmp_path, raw_tar(tar_member("a/MAR-INF/MANIFEST.json"), tar_member("b/MAR-INF/MANIFEST.json")), "twice")


def test_bytes_that_belong_to_no_entry_are_refused(tmp_path: Path) -> None:
    """S15: polyglots."""
    sound = raw_zip(Raw(b"a"))
    refused(tmp_path, sound + b"junk")
    refused(tmp_path, b"#!/bin/sh\n" + sound)
    refused(tmp_path, b"PK\3\4" + sound)
    refused(tmp_path, raw_zip(Raw(b"a"), before=b"PK\3\4junk"), "before its first entry")
    refused(tmp_path, sound[:-2] + b"\4\0" + b"note")
    refused(tmp_path, sound + sound)
    refused(tmp_path, gzip.compress(gzip.decompress(good_tar()) + b"junk"), "after its end")
    refused(tmp_path, good_tar() + b"junk")
    middle = raw_zip(Raw(b"a", b"xx"), Raw(b"b"))
    refused(tmp_path, middle.replace(struct.pack("<2L", 2, 2), struct.pack("<2L", 1, 1)), "belong to nothing")


@pytest.mark.parametrize(
    "content", [b"", b"P", b"PK\3\4", b"PK\5\6", b"\x1f\x8b", b"<html>404</html>", gzip.compress(b"", mtime=0)]
)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path, content)


@pytest.mark.parametrize("make", [good_zip, good_tar])
def test_an_archive_cut_anywhere_is_refused(tmp_path: Path, make: Callable[[], bytes]) -> None:
    """S14, A01."""
    content = make()
    for step in range(50):
        refused(tmp_path, content[: len(content) * step // 50])


def test_a_flipped_bit_is_refused_or_changes_no_content(tmp_path: Path) -> None:
    """S14: times and versions may flip unseen; names, sizes and data may not."""
    sound = raw_zip(Raw(b"MAR-INF/MANIFEST.json", MANIFEST, method=8), Raw(b"h.py", b"x" * 50), Raw(b"d/", b""))
    path = tmp_path / "a.mar"
    for position in range(len(sound)):
        flipped = bytearray(sound)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        out = tmp_path / f"out{position}"
        try:
            unpack(path, out)
        except ArchiveInvalid:
            assert not out.exists()
        else:
            assert files_below(out) == {"MAR-INF/MANIFEST.json": MANIFEST, "h.py": b"x" * 50}


def test_a_flipped_bit_in_a_tar_is_refused_or_changes_no_content(tmp_path: Path) -> None:
    """S14."""
    sound = good_tar()
    path = tmp_path / "a.mar"
    for position in range(0, len(sound), 3):
        flipped = bytearray(sound)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        out = tmp_path / f"out{position}"
        try:
            unpack(path, out)
        except ArchiveInvalid:
            assert not out.exists()
        else:
            assert files_below(out) == GOOD


def test_a_handler_that_is_not_in_the_archive_is_refused(tmp_path: Path) -> None:
    """S16."""
    refused(tmp_path, raw_zip(Raw(b"MAR-INF/MANIFEST.json", MANIFEST)), "handler 'h.py' is not in the archive")


def test_a_long_tar_name_is_read_and_a_huge_one_refused(tmp_path: Path) -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz", format=form) as tar:
            tar.addfile(tar_member("m/" + "d" * 120 + "/f"))
        (tmp_path / f"{form}.tgz").write_bytes(buffer.getvalue())
        unpack(tmp_path / f"{form}.tgz", tmp_path / f"out{form}")
        assert files_below(tmp_path / f"out{form}") == {"d" * 120 + "/f": b""}
        (tmp_path / f"{form}.tgz").unlink()
    other = tmp_path / "huge"
    other.mkdir()
    refused(other, raw_tar(tar_member("x", tarfile.XHDTYPE, size=1 << 20), content=bytes(1 << 20)), "limit is 65536")


def test_pax_headers_that_rename_are_checked_like_names(tmp_path: Path) -> None:
    """S10."""
    member = tar_member("m/innocent")
    member.pax_headers = {"path": "m/../../evil"}
    refused(tmp_path, raw_tar(member), "'..'")


def test_a_destination_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.mar").write_bytes(good_zip())
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        unpack(tmp_path / "a.mar", tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["a.mar", "out"]


def test_an_archive_that_changes_between_check_and_unpacking_is_refused(tmp_path: Path) -> None:
    """A02."""
    path = tmp_path / "a.mar"
    path.write_bytes(good_zip())
    with open_archive(path) as archive:
        path.write_bytes(bytes(len(good_zip())))
        with pytest.raises(ArchiveInvalid):
            archive.unpack(tmp_path / "out")
    assert os.listdir(tmp_path) == ["a.mar"]


def test_more_than_the_disk_can_spare_is_refused_before_writing(tmp_path: Path) -> None:
    """E08."""
    (tmp_path / "a.mar").write_bytes(good_zip())
    limits = ArchiveLimits(ratio_floor_bytes=0, ratio=10_000, spare_disk_bytes=1 << 60)
    with pytest.raises(OSError, match="unpacking takes"):
        unpack(tmp_path / "a.mar", tmp_path / "out", limits)
    assert os.listdir(tmp_path) == ["a.mar"]


def test_a_missing_archive_is_an_error_of_the_disk_and_a_fifo_no_archive(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_archive(tmp_path / "none.mar")
    os.mkfifo(tmp_path / "a.mar")
    with pytest.raises(ArchiveInvalid, match="neither a file nor a folder"):
        open_archive(tmp_path / "a.mar")


def test_a_folder_is_used_where_it_lies(tmp_path: Path) -> None:
    """A06; a folder that only wraps another stands for that one."""
    for name, data in GOOD.items():
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).write_bytes(data)
    for folder in (tmp_path, tmp_path / "m"):
        with open_archive(folder) as archive:
            assert archive.manifest.model_name == "m"
            assert archive.files == GOOD.keys()
            assert archive.unpack(tmp_path / "unused") == tmp_path / "m"
    assert not (tmp_path / "unused").exists()


def test_links_in_a_folder_are_refused(tmp_path: Path) -> None:
    """S12."""
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "l").symlink_to("/etc")
    with pytest.raises(ArchiveInvalid, match="entry 'l': is a link"):
        open_archive(tmp_path)


quiet = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quiet
@given(st.binary(max_size=300), st.sampled_from([b"", b"PK\3\4", b"PK\5\6", b"\x1f\x8b\x08\0"]))
def test_any_bytes_are_unpacked_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, magic: bytes
) -> None:
    refused(tmp_path_factory.mktemp("any"), magic + content)


@quiet
@given(
    st.lists(st.text(max_size=20) | st.text(alphabet="./\\a~ :", max_size=12), min_size=1, max_size=4), st.booleans()
)
def test_no_name_leads_out_of_the_destination(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], as_tar: bool
) -> None:
    """S10, S11: whatever is written is written under exactly its own name, inside."""
    place = tmp_path_factory.mktemp("names")
    encoded = [name.encode("utf-8", "replace") for name in names]
    if as_tar:
        content = raw_tar(*(tar_member("m/" + name.decode()) for name in encoded if b"\0" not in name))
    else:
        content = raw_zip(*(Raw(name, b"", flags=0x800) for name in encoded))
    (place / "a.mar").write_bytes(content)
    try:
        unpack(place / "a.mar", place / "out")
    except ArchiveInvalid:
        assert os.listdir(place) == ["a.mar"]
    else:
        assert sorted(os.listdir(place)) == ["a.mar", "out"]
        below = {str(path.relative_to(place / "out")) for path in (place / "out").rglob("*")}
        assert below >= {name.decode().rstrip("/") for name in encoded if name and (not as_tar or b"\0" not in name)}


@quiet
@given(st.data())
def test_a_damaged_archive_is_unpacked_whole_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """S14."""
    place = tmp_path_factory.mktemp("damaged")
    content = bytearray(data.draw(st.sampled_from([good_zip(), good_tar(), gzip.decompress(good_tar())])))
    is_tar = content[:1] == b"m"
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (place / "a.mar").write_bytes(gzip.compress(content) if is_tar else content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            unpack(place / "a.mar", place / "out")
        except ArchiveInvalid:
            assert os.listdir(place) == ["a.mar"]
        else:
            assert files_below(place / "out")
