"""Reading a gzip'ed tar (.tar.gz, .tgz) strictly and as a stream: once to check everything, once more to unpack.

The first component of every path is dropped, as TorchServe does: the archive holds one folder, the model's.
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from torchd_archiver.entries import MANIFEST_PATH, ArchiveLimits, Entry, Inventory, check_path, check_ratio
from torchd_archiver.errors import ArchiveInvalid

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 18
_MAX_EXTENSION = 1 << 16
"""A pax header or a GNU long name: the one thing of a tar that is read into memory whole."""
_LONG_NAME, _PAX, _PAX_GLOBAL = tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE
_REPACK = "pack it again with torch-model-archiver --archive-format tgz"


@dataclass(frozen=True, slots=True)
class TarHeader:
    """One 512-byte header: what kind of record follows, under which name, of how many bytes."""

    path: str
    kind: bytes
    size: int


class TarArchive:
    """An open .tar.gz that has been read once to its end and found sound; reads the file it was handed."""

    def __init__(self, file: BinaryIO, limits: ArchiveLimits) -> None:
        self.file = file
        self._limits = limits
        self._manifest: bytes | None = None
        self.inventory = Inventory(limits)
        for entry, pieces in self._records(self.inventory):
            if entry.path == MANIFEST_PATH:
                self._manifest = b"".join(pieces)

    def read_manifest(self) -> bytes | None:
        """The bytes of the manifest, None where there is none."""
        return self._manifest

    def contents(self) -> Iterator[tuple[Entry, Iterator[bytes]]]:
        """Every entry with its data in pieces, all rules checked again on the way."""
        return self._records(Inventory(self._limits))

    def _records(self, inventory: Inventory) -> Iterator[tuple[Entry, Iterator[bytes]]]:
        stream = _Inflated(self.file, self._limits)
        extension: dict[str, str] = {}
        while (header := parse_header(stream.read_exactly(_BLOCK))) is not None:
            if header.kind in (_LONG_NAME, _PAX, _PAX_GLOBAL):
                extension |= _read_extension(stream, header)
                continue
            entry = entry_of(header, extension)
            extension = {}
            end = stream.position + -(-entry.size // _BLOCK) * _BLOCK
            if entry.path or not entry.is_folder:
                inventory.add(entry)
                yield entry, stream.pieces(entry.size)
            stream.skip_to(end)
        stream.expect_zeros()


def parse_header(block: bytes) -> TarHeader | None:
    """Reads one header block, None for the block of zeros that ends a tar; raises ArchiveInvalid."""
    if not any(block):
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError, ValueError) as error:
        raise ArchiveInvalid(f"has a broken tar header ({error}); copy it again or {_REPACK}") from None
    if info.size < 0:
        raise ArchiveInvalid(f"has a negative size; {_REPACK}", entry=info.name)
    return TarHeader(info.name, info.type, info.size)


def parse_pax(records: bytes) -> dict[str, str]:
    """Reads the 'length key=value' records of a pax header; keeps path and size, refuses what would change content."""
    found: dict[str, str] = {}
    position = 0
    while position < len(records):
        space = records.find(b" ", position, position + 8)
        digits = records[position:space] if space > 0 else b""
        end = position + int(digits) if digits.isdigit() else 0
        key, equals, value = records[space + 1 : end - 1].partition(b"=")
        if end <= space + 1 or end > len(records) or records[end - 1 : end] != b"\n" or not equals:
            raise ArchiveInvalid(f"has a broken pax header; {_REPACK}")
        if key.startswith(b"GNU.sparse") or key == b"hdrcharset":
            raise ArchiveInvalid(f"uses tar features we do not read ({key!r:.60}); {_REPACK}")
        if key in (b"path", b"size"):
            found[key.decode()] = _text(value)
        position = end
    return found


def entry_of(header: TarHeader, extension: dict[str, str]) -> Entry:
    """The entry a header and its extension describe, with the first component of its path dropped."""
    path = extension.get("path", header.path)
    is_folder = header.kind == tarfile.DIRTYPE
    if not is_folder and header.kind not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise ArchiveInvalid("is a link or device; an archive may hold files and folders only", entry=path)
    size = extension.get("size", str(header.size))
    if not (size.isascii() and size.isdigit() and len(size) < 20):
        raise ArchiveInvalid(f"has a broken size; {_REPACK}", entry=path)
    if is_folder and int(size):
        raise ArchiveInvalid("is a folder with content", entry=path)
    top, slash, inner = (path.removesuffix("/") if is_folder else path).partition("/")
    if top != ".":
        check_path(top, ArchiveLimits())
    if not is_folder and not slash:
        raise ArchiveInvalid("lies beside the model's folder, not inside it; " + _REPACK, entry=path)
    if slash and not inner:
        raise ArchiveInvalid("has an empty name; " + _REPACK, entry=path)
    # The ratio is asked of the whole stream; a tar does not pack its entries one by one.
    return Entry(inner, is_folder, int(size), int(size))


def _read_extension(stream: "_Inflated", header: TarHeader) -> dict[str, str]:
    if header.size > _MAX_EXTENSION:
        raise ArchiveInvalid(f"has a tar header of {header.size} bytes; the limit is {_MAX_EXTENSION}")
    content = stream.read_exactly(-(-header.size // _BLOCK) * _BLOCK)[: header.size]
    if header.kind == _LONG_NAME:
        return {"path": _text(content.removesuffix(b"\0"))}
    found = parse_pax(content)
    if header.kind == _PAX_GLOBAL and found:
        raise ArchiveInvalid(f"gives all entries one name or size; {_REPACK}")
    return found


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ArchiveInvalid("has a name that is not UTF-8; " + _REPACK, entry=repr(value[:120])) from None


class _Inflated:
    """The inflated bytes of a gzip file, front to back, with their position; anything broken is ArchiveInvalid."""

    def __init__(self, file: BinaryIO, limits: ArchiveLimits) -> None:
        self._packed_size = file.seek(0, 2)
        file.seek(0)
        self._gzip = gzip.GzipFile(fileobj=file, mode="rb")
        self._limits = limits
        self.position = 0

    def read(self, size: int) -> bytes:
        """At most `size` bytes, empty at the end."""
        try:
            piece = self._gzip.read(min(size, _CHUNK))
        except (EOFError, OSError, zlib.error) as error:
            # A real I/O error carries an errno and is the caller's to see.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ArchiveInvalid(f"cannot be inflated ({error}); copy it again or {_REPACK}") from None
        self.position += len(piece)
        check_ratio(self.position, self._packed_size, self._limits)
        return piece

    def read_exactly(self, size: int) -> bytes:
        """Exactly `size` bytes, of which there are few."""
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[bytes]:
        """Exactly `size` bytes, in pieces."""
        while size:
            piece = self.read(size)
            if not piece:
                raise ArchiveInvalid("ends in the middle of an entry; copy it again")
            size -= len(piece)
            yield piece

    def skip_to(self, position: int) -> None:
        """Reads on to `position`."""
        for _ in self.pieces(position - self.position):
            pass

    def expect_zeros(self) -> None:
        """Reads to the end, where nothing but padding may stand."""
        while piece := self.read(_CHUNK):
            if any(piece):
                raise ArchiveInvalid(f"has something after its end; {_REPACK}")
