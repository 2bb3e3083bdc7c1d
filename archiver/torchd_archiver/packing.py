"""Packing a model: from what torch-model-archiver's flags name to a .mar, .tar.gz or folder, written all at once."""

import filecmp
import glob
import gzip
import io
import logging
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from torchd_archiver.entries import MANIFEST_PATH, ArchiveLimits, Entry, Inventory
from torchd_archiver.errors import PackFailed, shown
from torchd_archiver.manifest import ARCHIVER_VERSION, DEFAULT_HANDLERS, LSP_HANDLERS, Manifest, written_at

logger = logging.getLogger(__name__)

_SKIPPED_FOLDERS = ("__MACOSX", "__pycache__")
_GLOB_CHARACTERS = "*?["
_CHUNK = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every file in a zip, so that the same input gives the same bytes."""


@dataclass(frozen=True)
class PackRequest:
    """What to pack and where to; the fields are torch-model-archiver's flags."""

    model_name: str
    version: str
    handler: str
    serialized_file: Path | None = None
    model_file: Path | None = None
    extra_files: tuple[str, ...] = ()
    """Files, folders (their content goes to the root) and patterns."""
    requirements_file: Path | None = None
    config_file: Path | None = None
    runtime: str = "python"
    export_path: Path = Path()
    archive_format: str = "default"
    force: bool = False
    follow_links: bool = False
    created_on: datetime | None = None
    """None is now."""


class _Source(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Sink(Protocol):
    def add(self, name: str, size: int, content: _Source) -> None: ...

    def close(self) -> None: ...


def pack(request: PackRequest, on_bytes: Callable[[int, int], None] | None = None) -> Path:
    """Packs and answers the path written; `on_bytes` hears how many more bytes have been read, of how many.

    Raises PackFailed (an input is missing, a link, named twice), ArchiveInvalid (a name that none may have) or OSError.
    """
    if request.archive_format not in FORMATS:
        raise PackFailed(f"archive format {shown(request.archive_format)} is unknown; it may be {', '.join(FORMATS)}")
    files = plan(request)
    manifest = manifest_of(request)
    manifest.check_files(files.keys())
    suffix, make_sink = FORMATS[request.archive_format]
    target = request.export_path / f"{request.model_name}{suffix}"
    if os.path.lexists(target) and not request.force:
        raise PackFailed(f"{target} already exists; give --force (-f) to overwrite it")
    request.export_path.mkdir(parents=True, exist_ok=True)
    total = sum(source.stat().st_size for source in files.values())
    heard = None if on_bytes is None else lambda count: on_bytes(count, total)
    with replacing(target) as unfinished:
        sink = make_sink(unfinished, request.model_name)
        for name, source in files.items():
            with open_source(source, request.follow_links) as file:
                sink.add(name, os.fstat(file.fileno()).st_size, _Counted(file, heard))
        document = manifest.to_json().encode()
        sink.add(MANIFEST_PATH, len(document), io.BytesIO(document))
        sink.close()
    return target


def manifest_of(request: PackRequest) -> Manifest:
    """The manifest the archive gets; raises ArchiveInvalid for a name, version or handler that does not fit."""
    return Manifest(
        model_name=request.model_name,
        model_version=request.version,
        handler=os.path.basename(request.handler),
        serialized_file=_name(request.serialized_file),
        model_file=_name(request.model_file),
        requirements_file=_name(request.requirements_file),
        config_file=_name(request.config_file),
        runtime=request.runtime,
        created_on=written_at(request.created_on or datetime.now()),
        archiver_version=ARCHIVER_VERSION,
    )


def _name(path: Path | None) -> str | None:
    return None if path is None else path.name


def plan(request: PackRequest) -> dict[str, Path]:
    """Path in the archive -> file it comes from, in the order of the paths; raises what `pack` raises."""
    named = (request.model_file, request.serialized_file, request.requirements_file, request.config_file)
    files: dict[str, Path] = {}
    for source in (*named, _handler_file(request)):
        if source is not None:
            if stat.S_ISDIR(status_of(source, request.follow_links).st_mode):
                raise PackFailed(f"'{source}' is a folder; give a file here, and folders as --extra-files")
            _claim(files, source.name, source)
    for given in request.extra_files:
        for name, source in _extra(given, request.follow_links):
            _claim(files, name, source)
    # A folder that was once an archive brings its old manifest; the new one takes its place.
    files.pop(MANIFEST_PATH, None)
    inventory = Inventory(ArchiveLimits())
    for name in sorted(files):
        size = status_of(files[name], request.follow_links).st_size
        inventory.add(Entry(name, False, size, size))
    return {name: files[name] for name in sorted(files)}


def _handler_file(request: PackRequest) -> Path | None:
    module, _, _ = request.handler.partition(":")
    if request.runtime == "LSP":
        if module in LSP_HANDLERS:
            return None
        return Path(module if module.endswith((".so", ".dylib")) else f"{module}.so")
    if module in DEFAULT_HANDLERS:
        return None
    return Path(module if module.endswith(".py") else f"{module}.py")


def _claim(files: dict[str, Path], name: str, source: Path) -> None:
    known = files.setdefault(name, source)
    if known != source and not filecmp.cmp(known, source, shallow=False):
        raise PackFailed(f"'{known}' and '{source}' would both become {shown(name)} in the archive; rename one of them")


def _extra(given: str, follow_links: bool) -> Iterator[tuple[str, Path]]:
    """What one item of --extra-files brings, as (path in the archive, file)."""
    is_pattern = any(character in given for character in _GLOB_CHARACTERS) and not os.path.lexists(given)
    matches = sorted(glob.glob(given)) if is_pattern else [given]
    if not matches:
        logger.warning("extra files '%s' match no file", given)
    for match in matches:
        source = Path(match)
        if stat.S_ISDIR(status_of(source, follow_links).st_mode):
            yield from _content_of(source, "", follow_links)
        else:
            yield source.name, source


def _content_of(folder: Path, inner: str, follow_links: bool) -> Iterator[tuple[str, Path]]:
    for child in sorted(folder.iterdir()):
        if not stat.S_ISDIR(status_of(child, follow_links).st_mode):
            yield f"{inner}{child.name}", child
        elif child.is_symlink():
            raise PackFailed(f"'{child}' is a link to a folder; give the folder '{child.resolve()}' itself")
        elif child.name not in _SKIPPED_FOLDERS and not child.name.startswith("."):
            yield from _content_of(child, f"{inner}{child.name}/", follow_links)


def status_of(source: Path, follow_links: bool) -> os.stat_result:
    """The status of a file or folder that may be packed; raises PackFailed for any other."""
    try:
        status = source.stat(follow_symlinks=follow_links)
    except FileNotFoundError:
        raise PackFailed(f"'{source}' does not exist; check the path (relative ones start at {Path.cwd()})") from None
    if stat.S_ISLNK(status.st_mode):
        raise PackFailed(
            f"'{source}' is a symbolic link, and links are not followed: they can lead out of what you meant to pack; "
            f"give its target '{source.resolve()}', or --follow-links if you trust the folder"
        )
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise PackFailed(f"'{source}' is neither a file nor a folder")
    return status


def open_source(source: Path, follow_links: bool) -> BinaryIO:
    """Opens a regular file to be packed."""
    # Between plan and here the file may have become a link or a fifo: neither is followed or waited for.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    file = open(os.open(source, flags), "rb")  # noqa: SIM115  (closed by the caller)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise PackFailed(f"'{source}' is not a file; give a file here")
    return file


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path in a private folder beside the target, renamed onto it if nothing fails."""
    staging = Path(tempfile.mkdtemp(prefix=".packing-", dir=target.parent))
    try:
        unfinished = staging / target.name
        yield unfinished
        if target.is_dir() and not target.is_symlink():
            target.rename(staging / ".replaced")
        unfinished.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


class _Counted:
    """A file that says how much of it has been read."""

    def __init__(self, file: BinaryIO, on_bytes: Callable[[int], None] | None) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def read(self, size: int = -1, /) -> bytes:
        piece = self._file.read(size)
        if self._on_bytes is not None:
            self._on_bytes(len(piece))
        return piece


class ZipSink:
    """Writes files into a zip whose bytes depend on nothing but them."""

    def __init__(self, path: Path, method: int) -> None:
        self._zip = zipfile.ZipFile(path, "x", method)
        self._method = method

    def add(self, name: str, size: int, content: _Source) -> None:
        """One more file."""
        info = zipfile.ZipInfo(name, _EPOCH)
        info.compress_type = self._method
        info.external_attr = (stat.S_IFREG | 0o644) << 16
        info.file_size = size
        with self._zip.open(info, "w") as member:
            shutil.copyfileobj(content, member, _CHUNK)

    def close(self) -> None:
        """Writes the index."""
        self._zip.close()


class _TarSink:
    def __init__(self, path: Path, model_name: str) -> None:
        self._model_name = model_name
        self._raw = open(path, "xb")  # noqa: SIM115  (this, and what is built on it, is closed in close)
        self._gzip = gzip.GzipFile("", "wb", compresslevel=6, fileobj=self._raw, mtime=0)
        self._tar = tarfile.open(fileobj=self._gzip, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, name: str, size: int, content: _Source) -> None:
        info = tarfile.TarInfo(f"{self._model_name}/{name}")
        info.size = size
        self._tar.addfile(info, content)

    def close(self) -> None:
        self._tar.close()
        self._gzip.close()
        self._raw.close()


class _FolderSink:
    def __init__(self, path: Path) -> None:
        self._folder = path
        path.mkdir()

    def add(self, name: str, size: int, content: _Source) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            shutil.copyfileobj(content, file, _CHUNK)

    def close(self) -> None:
        pass


FORMATS: dict[str, tuple[str, Callable[[Path, str], _Sink]]] = {
    "default": (".mar", lambda path, model_name: ZipSink(path, zipfile.ZIP_DEFLATED)),
    "zip-store": (".mar", lambda path, model_name: ZipSink(path, zipfile.ZIP_STORED)),
    "tgz": (".tar.gz", _TarSink),
    "no-archive": ("", lambda path, model_name: _FolderSink(path)),
}
"""Archive format -> the suffix of its file, and what writes it."""
