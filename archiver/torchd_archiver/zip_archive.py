"""Reading a zip (.mar) strictly: our own index parser, pure over bytes, below a thin class that reads the file.

The standard library's zipfile rewrites '../../x' to 'x', takes overlapping entries and looks for archives inside other
files; a hostile archive lives in that freedom. Here every byte of the file belongs to exactly one structure.
"""

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from torchd_archiver.entries import MANIFEST_PATH, ArchiveLimits, Entry, Inventory, check_count
from torchd_archiver.errors import ArchiveInvalid

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_TAIL = _END.size + _END64_LOCATOR.size + _END64.size

_UTF8, _DESCRIPTOR, _ENCRYPTED = 0x0800, 0x0008, 0x0001
_KNOWN_FLAGS = _UTF8 | _DESCRIPTOR | 0x0006  # the last two say how hard deflate tried
_STORED, _DEFLATED = 0, 8
_ZIP64_EXTRA, _UNICODE_PATH_EXTRA = 0x0001, 0x7075
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_LONGEST_DESCRIPTOR = 24
_CHUNK = 1 << 18
_REPACK = "pack it again with torch-model-archiver"


@dataclass(frozen=True, slots=True)
class ZipIndexPlace:
    """Where the central directory lies, and of how many records it consists."""

    offset: int
    size: int
    count: int


@dataclass(frozen=True, slots=True)
class ZipRecord:
    """One record of the central directory, as far as reading needs it."""

    raw_name: bytes
    entry: Entry
    flags: int
    method: int
    crc: int
    offset: int


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A record whose local header has been found to agree, and where its data start."""

    record: ZipRecord
    data_offset: int


class ZipArchive:
    """An open zip whose whole index has been checked; reads the file it was handed."""

    def __init__(self, file: BinaryIO, limits: ArchiveLimits) -> None:
        self.file = file
        self.inventory = Inventory(limits)
        self._members = _read_members(file, limits, self.inventory)

    def read_manifest(self) -> bytes | None:
        """The bytes of the manifest, None where there is none."""
        for member in self._members:
            if member.record.entry.path == MANIFEST_PATH:
                return b"".join(self._chunks(member))
        return None

    def contents(self) -> Iterator[tuple[Entry, Iterator[bytes]]]:
        """Every entry with its data in pieces, checked against size and CRC by the time the last has come."""
        for member in self._members:
            yield member.record.entry, self._chunks(member)

    def _chunks(self, member: ZipMember) -> Iterator[bytes]:
        record = member.record
        self.file.seek(member.data_offset)
        packed = _pieces(self.file, record.entry.packed)
        unpacked = packed if record.method == _STORED else _inflated(packed, record.entry.path)
        size = crc = 0
        for piece in unpacked:
            size += len(piece)
            if size > record.entry.size:
                break
            crc = zlib.crc32(piece, crc)
            yield piece
        if size != record.entry.size:
            raise ArchiveInvalid(
                f"is not of the {record.entry.size} bytes it claims; {_REPACK}", entry=record.entry.path
            )
        if crc != record.crc:
            raise ArchiveInvalid("has a wrong checksum; copy the archive again", entry=record.entry.path)


def parse_end(tail: bytes, file_size: int) -> ZipIndexPlace:
    """Reads the end of a zip from the file's last bytes (all of it, or at least 98)."""
    if len(tail) < _END.size or tail[-_END.size :][:4] != b"PK\x05\x06":
        raise ArchiveInvalid(
            f"does not end as a zip does: it is cut short, or something was appended; copy it again or {_REPACK}"
        )
    _, disk, index_disk, count_here, count, size, offset, comment = _END.unpack(tail[-_END.size :])
    end_start = file_size - _END.size
    if _MAX16 in (count_here, count) or _MAX32 in (size, offset):
        disk, index_disk, count_here, count, size, offset, end_start = _parse_end64(tail, file_size)
    if disk or index_disk or count_here != count:
        raise ArchiveInvalid(f"is one part of a multi-part zip; {_REPACK}")
    if comment:
        raise ArchiveInvalid(f"announces a comment that is not there; {_REPACK}")
    if offset + size != end_start:
        raise ArchiveInvalid(f"has something between its index and its end, or before its start; {_REPACK}")
    return ZipIndexPlace(offset, size, count)


def _parse_end64(tail: bytes, file_size: int) -> tuple[int, int, int, int, int, int, int]:
    if len(tail) < _TAIL:
        raise ArchiveInvalid(f"lacks the zip64 end it announces; {_REPACK}")
    start = len(tail) - _TAIL
    record = _END64.unpack_from(tail, start)
    locator = _END64_LOCATOR.unpack_from(tail, start + _END64.size)
    signature, length, _, _, disk, index_disk, count_here, count, size, offset = record
    end_start = file_size - _TAIL
    if signature != b"PK\x06\x06" or length != _END64.size - 12 or locator != (b"PK\x06\x07", 0, end_start, 1):
        raise ArchiveInvalid(f"has a broken zip64 end; {_REPACK}")
    return disk, index_disk, count_here, count, size, offset, end_start


def parse_index(index: bytes, count: int) -> list[ZipRecord]:
    """Reads the central directory, which has to consist of exactly `count` records."""
    records = []
    position = 0
    for _ in range(count):
        record, position = _parse_record(index, position)
        records.append(record)
    if position != len(index):
        raise ArchiveInvalid(f"has more in its index than the {count} entries it announces; {_REPACK}")
    return records


def _parse_record(index: bytes, start: int) -> tuple[ZipRecord, int]:
    if start + _CENTRAL.size > len(index):
        raise ArchiveInvalid(f"has a shorter index than it announces; {_REPACK}")
    fields = _CENTRAL.unpack_from(index, start)
    signature, _, _, flags, method, _, _, crc, packed, size = fields[:10]
    name_length, extra_length, comment_length, disk, _, attributes, offset = fields[10:]
    name_end = start + _CENTRAL.size + name_length
    end = name_end + extra_length + comment_length
    if signature != b"PK\x01\x02" or end > len(index):
        raise ArchiveInvalid(f"has a broken index; {_REPACK}")
    raw_name = index[start + _CENTRAL.size : name_end]
    path, is_folder = _parse_name(raw_name, flags)
    extra = _parse_extra(index[name_end : name_end + extra_length], path)
    size, packed, offset = _widen(extra, path, size, packed, offset)
    if disk:
        raise ArchiveInvalid("lies in another part of a multi-part zip", entry=path)
    _check_kind(path, is_folder, flags, method, attributes >> 16)
    if is_folder and size:
        raise ArchiveInvalid("is a folder with content", entry=path)
    if method == _STORED and size != packed:
        raise ArchiveInvalid("is stored in another size than its own", entry=path)
    return ZipRecord(raw_name, Entry(path, is_folder, size, packed), flags, method, crc, offset), end


def _parse_name(raw_name: bytes, flags: int) -> tuple[str, bool]:
    try:
        name = raw_name.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError:
        raise ArchiveInvalid(
            "has a name that is not UTF-8, or not marked as UTF-8; " + _REPACK, entry=repr(raw_name[:120])
        ) from None
    return name.removesuffix("/"), name.endswith("/")


def _parse_extra(extra: bytes, path: str) -> bytes | None:
    """Finds the zip64 field; refuses a malformed area, and one that brings a second name."""
    found = None
    position = 0
    # Up to three bytes of padding are what zipalign and Java leave behind.
    while len(extra) - position >= 4:
        kind, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if (
            position + length > len(extra)
            or kind == _UNICODE_PATH_EXTRA
            or (kind == _ZIP64_EXTRA and found is not None)
        ):
            raise ArchiveInvalid(f"has a broken or doubled extra field; {_REPACK}", entry=path)
        if kind == _ZIP64_EXTRA:
            found = extra[position : position + length]
        position += length
    return found


def _widen(zip64: bytes | None, path: str, *values: int) -> tuple[int, ...]:
    """Replaces the values that did not fit into 32 bits by those of the zip64 field, in their order."""
    wide = iter(struct.unpack(f"<{len(zip64) // 8}Q", zip64[: len(zip64) // 8 * 8]) if zip64 else ())
    try:
        return tuple([next(wide) if value == _MAX32 else value for value in values])
    except StopIteration:
        raise ArchiveInvalid(f"lacks the zip64 sizes it announces; {_REPACK}", entry=path) from None


def _check_kind(path: str, is_folder: bool, flags: int, method: int, mode: int) -> None:
    if flags & _ENCRYPTED:
        raise ArchiveInvalid("is encrypted; pack it without a password", entry=path)
    if flags & ~_KNOWN_FLAGS:
        raise ArchiveInvalid(f"uses zip features we do not read (flags {flags:#06x}); {_REPACK}", entry=path)
    if method not in (_STORED, _DEFLATED):
        raise ArchiveInvalid(f"is compressed by method {method}; only stored and deflated are read", entry=path)
    kind = stat.S_IFMT(mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveInvalid("is a link or device; an archive may hold files and folders only", entry=path)
    if kind and (kind == stat.S_IFDIR) != is_folder:
        raise ArchiveInvalid("is a folder by its mode and a file by its name, or the reverse", entry=path)


def parse_local_header(header: bytes, record: ZipRecord) -> int:
    """Checks a local header against its index record; answers the length of its name and extra field."""
    path = record.entry.path
    if len(header) < _LOCAL.size:
        raise ArchiveInvalid(f"starts past the end of the archive; {_REPACK}", entry=path)
    signature, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack_from(header)
    rest = header[_LOCAL.size :]
    if signature != b"PK\x03\x04" or len(rest) != name_length + extra_length:
        raise ArchiveInvalid(f"has no header of its own where the index says; {_REPACK}", entry=path)
    if rest[:name_length] != record.raw_name:
        raise ArchiveInvalid(f"has another name in its own header than in the index; {_REPACK}", entry=path)
    zip64 = _parse_extra(rest[name_length : name_length + extra_length], path)
    size, packed = _widen(zip64, path, size, packed)
    if flags & _DESCRIPTOR and not (crc or size or packed):
        # Written to a stream: the descriptor after the data says what the header could not yet know.
        crc, size, packed = record.crc, record.entry.size, record.entry.packed
    expected = (record.flags, record.method, record.crc, record.entry.size, record.entry.packed)
    if (flags, method, crc, size, packed) != expected:
        raise ArchiveInvalid(f"has another header of its own than in the index; {_REPACK}", entry=path)
    return len(rest)


def parse_descriptor(gap: bytes, record: ZipRecord) -> None:
    """Checks what follows an entry's data: nothing, or the data descriptor its flags announce."""
    if not record.flags & _DESCRIPTOR:
        fits = not gap
    else:
        sizes = (record.entry.packed, record.entry.size)
        fits = any(
            gap == signature + struct.pack("<L", record.crc) + struct.pack(layout, *sizes)
            for layout, limit in (("<2L", _MAX32), ("<2Q", 1 << 64))
            for signature in (b"PK\x07\x08", b"")
            if max(sizes) < limit
        )
    if not fits:
        raise ArchiveInvalid(f"is followed by bytes that belong to nothing; {_REPACK}", entry=record.entry.path)


def _read_members(file: BinaryIO, limits: ArchiveLimits, inventory: Inventory) -> list[ZipMember]:
    """Reads and checks the whole index, in the order of the data; raises ArchiveInvalid."""
    file_size = file.seek(0, os.SEEK_END)
    file.seek(max(0, file_size - _TAIL))
    place = parse_end(file.read(_TAIL), file_size)
    check_count(place.count, limits)
    if place.size > limits.index_bytes:
        raise ArchiveInvalid(f"has an index of {place.size} bytes; the limit is {limits.index_bytes}")
    file.seek(place.offset)
    records = sorted(parse_index(file.read(place.size), place.count), key=lambda record: record.offset)
    for record in records:
        inventory.add(record.entry)
    starts = [*(record.offset for record in records), place.offset]
    if starts[0] != 0:
        raise ArchiveInvalid(f"has something before its first entry; {_REPACK}")
    return [_read_member(file, record, end) for record, end in zip(records, starts[1:], strict=True)]


def _read_member(file: BinaryIO, record: ZipRecord, end: int) -> ZipMember:
    """Checks the entry's own header, and that it fills the file up to `end`, where the next thing starts."""
    shortest = record.offset + _LOCAL.size + record.entry.packed
    if shortest > end:
        raise ArchiveInvalid(f"overlaps another entry or the index; {_REPACK}", entry=record.entry.path)
    file.seek(record.offset)
    header = file.read(_LOCAL.size)
    header += file.read(sum(_LOCAL.unpack(header)[-2:])) if len(header) == _LOCAL.size else b""
    data_offset = record.offset + _LOCAL.size + parse_local_header(header, record)
    data_end = data_offset + record.entry.packed
    if not 0 <= end - data_end <= _LONGEST_DESCRIPTOR:
        raise ArchiveInvalid(f"overlaps another entry, or leaves a gap to it; {_REPACK}", entry=record.entry.path)
    file.seek(data_end)
    parse_descriptor(file.read(end - data_end), record)
    return ZipMember(record, data_offset)


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        piece = file.read(min(size, _CHUNK))
        if not piece:
            return
        size -= len(piece)
        yield piece


def _inflated(packed: Iterator[bytes], path: str) -> Iterator[bytes]:
    """Inflates in pieces of bounded size; the stream has to end exactly where its data end."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for piece in packed:
            if inflater.eof:
                raise ArchiveInvalid(f"ends before its data do; {_REPACK}", entry=path)
            while piece and not inflater.eof:
                yield inflater.decompress(piece, _CHUNK)
                piece = inflater.unconsumed_tail
        while not inflater.eof and (rest := inflater.decompress(b"", _CHUNK)):
            yield rest
    except zlib.error as error:
        raise ArchiveInvalid(f"cannot be inflated ({error}); copy the archive again", entry=path) from None
    if not inflater.eof or inflater.unused_data:
        raise ArchiveInvalid("has data that end too early or too late; copy the archive again", entry=path)
