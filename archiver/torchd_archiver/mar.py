"""Opening a model archive of any kind: its manifest, and its files in a folder of their own.

An archive is checked as a whole before a byte is written, and again while writing; what is written appears under its
final name all at once or not at all.
"""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from torchd_archiver.entries import ArchiveLimits, Entry, Inventory
from torchd_archiver.errors import ArchiveInvalid, naming
from torchd_archiver.folder_archive import FolderArchive
from torchd_archiver.manifest import Manifest
from torchd_archiver.tar_archive import TarArchive
from torchd_archiver.zip_archive import ZipArchive

__all__ = ["STAGING_PREFIX", "Archive", "ArchiveInvalid", "ArchiveLimits", "open_archive", "read_manifest", "unpack"]

STAGING_PREFIX = ".unpacking-"
"""How half-written folders are called beside their destination: a crash leaves them, whoever owns the place sweeps."""

_FOLDER_MODE, _FILE_MODE = 0o700, 0o600


class _Packed(Protocol):
    file: BinaryIO
    inventory: Inventory

    def read_manifest(self) -> bytes | None: ...

    def contents(self) -> Iterator[tuple[Entry, Iterator[bytes]]]: ...


_KINDS: dict[bytes, Callable[[BinaryIO, ArchiveLimits], _Packed]] = {
    b"PK\x03\x04": ZipArchive,
    b"PK\x05\x06": ZipArchive,
    b"\x1f\x8b": TarArchive,
}


class Archive:
    """An open archive, checked as a whole; a context manager that closes the file."""

    def __init__(
        self, path: Path, content: _Packed | FolderArchive, manifest: Manifest, status: os.stat_result
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._content = content
        self._status = status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; the archive is of no use afterwards."""
        if not isinstance(self._content, FolderArchive):
            self._content.file.close()

    @property
    def files(self) -> frozenset[str]:
        """The paths of all files in the archive."""
        return frozenset(self._content.inventory.files)

    def read(self, is_wanted: Callable[[str], bool], most_bytes: int = 1 << 20) -> dict[str, bytes]:
        """The content of the files whose paths are wanted, up to `most_bytes` of each; nothing is written."""
        content = self._content
        with naming(str(self.path)):
            if isinstance(content, FolderArchive):
                found = [path for path in content.inventory.files if is_wanted(path)]
                return {path: (content.folder / path).read_bytes()[:most_bytes] for path in found}
            return {
                entry.path: b"".join(pieces)[:most_bytes]
                for entry, pieces in content.contents()
                if not entry.is_folder and is_wanted(entry.path)
            }

    def unpack(self, destination: Path) -> Path:
        """Writes the files into a new folder `destination` and answers it; a plain folder is answered where it lies."""
        content = self._content
        if isinstance(content, FolderArchive):
            return content.folder
        if os.path.lexists(destination):
            raise FileExistsError(
                errno.EEXIST, "an archive is unpacked into a new folder, and this exists", str(destination)
            )
        with naming(str(self.path)), _staging(destination) as staging:
            _check_space(content.inventory, staging)
            _write(content, staging)
            now = os.fstat(content.file.fileno())
            if (now.st_size, now.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns):
                raise ArchiveInvalid("changed while it was being read; put it in place by renaming, and try again")
        return destination


def open_archive(path: Path | str, limits: ArchiveLimits | None = None) -> Archive:
    """Opens a .mar, .zip, .tar.gz, .tgz or folder and checks all of it; raises ArchiveInvalid or OSError."""
    path, limits = Path(path), limits or ArchiveLimits()
    with naming(str(path)):
        # Without O_NONBLOCK a fifo under this name would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            if not stat.S_ISDIR(status.st_mode):
                raise ArchiveInvalid("is neither a file nor a folder")
            folder = FolderArchive(path, limits)
            return Archive(path, folder, _manifest_of(folder, limits), status)
        file = open(descriptor, "rb")  # noqa: SIM115  (closed by the Archive)
        try:
            packed = _open_packed(file, limits)
            return Archive(path, packed, _manifest_of(packed, limits), status)
        except BaseException:
            file.close()
            raise


def read_manifest(path: Path | str, limits: ArchiveLimits | None = None) -> Manifest:
    """The manifest of an archive, an empty one where it has none; nothing is unpacked."""
    with closing(open_archive(path, limits)) as archive:
        return archive.manifest


def unpack(path: Path | str, destination: Path, limits: ArchiveLimits | None = None) -> Manifest:
    """Unpacks an archive into a new folder; of a plain folder nothing is copied (see Archive.unpack)."""
    with closing(open_archive(path, limits)) as archive:
        archive.unpack(destination)
        return archive.manifest


def _open_packed(file: BinaryIO, limits: ArchiveLimits) -> _Packed:
    start = file.read(4)
    for magic, kind in _KINDS.items():
        if start.startswith(magic):
            return kind(file, limits)
    raise ArchiveInvalid(
        "is neither a zip (.mar, .zip) nor a gzip'ed tar (.tar.gz, .tgz); is it a web page, or cut short?"
    )


def _manifest_of(content: _Packed | FolderArchive, limits: ArchiveLimits) -> Manifest:
    document = content.read_manifest()
    if document is None:
        return Manifest()
    manifest = Manifest.from_json(document, limits)
    manifest.check_files(content.inventory.files)
    return manifest


def _check_space(inventory: Inventory, place: Path) -> None:
    limits = inventory.limits
    if inventory.total <= limits.ratio_floor_bytes:
        return
    free = shutil.disk_usage(place).free
    if inventory.total > free - limits.spare_disk_bytes:
        raise OSError(
            errno.ENOSPC,
            f"unpacking takes {inventory.total} bytes, {free} are free and {limits.spare_disk_bytes} have to stay so",
            str(place.parent),
        )


@contextmanager
def _staging(destination: Path) -> Iterator[Path]:
    """A private folder beside the destination, which takes the destination's name if nothing fails."""
    staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=destination.parent))
    try:
        yield staging
        staging.rename(destination)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _write(content: _Packed, folder: Path) -> None:
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    made = {""}
    try:
        for entry, pieces in content.contents():
            _make_folders(root, entry.path if entry.is_folder else entry.path.rpartition("/")[0], made)
            if entry.is_folder:
                for _ in pieces:
                    pass
                continue
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(entry.path, flags, _FILE_MODE, dir_fd=root), "wb") as file:
                for piece in pieces:
                    file.write(piece)
    finally:
        os.close(root)


def _make_folders(root: int, path: str, made: set[str]) -> None:
    if path in made:
        return
    _make_folders(root, path.rpartition("/")[0], made)
    os.mkdir(path, _FOLDER_MODE, dir_fd=root)
    made.add(path)
