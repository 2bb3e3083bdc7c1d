"""The rules every entry of an archive has to meet, whatever the container; pure, no I/O.

Nothing is ever rewritten to make it fit: an entry meets the rules as it stands or the archive is refused.
"""

import re
import unicodedata
from dataclasses import dataclass, field

from torchd_archiver.errors import ArchiveInvalid

MANIFEST_PATH = "MAR-INF/MANIFEST.json"

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """How large an archive may be; sizes are unpacked bytes unless said otherwise."""

    entries: int = 10_000
    depth: int = 32
    name_bytes: int = 255
    """One component of a path; what file systems take."""
    path_bytes: int = 1024
    file_bytes: int = 16 * _GIB
    total_bytes: int = 64 * _GIB
    ratio: int = 200
    """Unpacked to packed bytes, asked only of what is larger than `ratio_floor_bytes`."""
    ratio_floor_bytes: int = 10 * _MIB
    manifest_bytes: int = 256 * _KIB
    index_bytes: int = 16 * _MIB
    """The central directory of a zip, which is held in memory."""
    spare_disk_bytes: int = _GIB
    """What must stay free on the disk when more than `ratio_floor_bytes` is unpacked."""
    strict_manifest: bool = False
    """Whether a key that torch-model-archiver never wrote is refused instead of handed to the handler."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or folder of an archive: a '/'-separated path, its unpacked and its packed size."""

    path: str
    is_folder: bool
    size: int
    packed: int


@dataclass(slots=True)
class Inventory:
    """Takes entries one by one and refuses the first that breaks a rule, alone or beside the others."""

    limits: ArchiveLimits
    count: int = 0
    total: int = 0
    files: set[str] = field(default_factory=set)
    _kinds: dict[str, tuple[str, bool, bool]] = field(default_factory=dict)
    """Folded path -> (path as written, is it a folder, was it an entry of its own)."""

    def add(self, entry: Entry) -> None:
        """Checks the entry and remembers it; raises ArchiveInvalid."""
        self.count += 1
        check_count(self.count, self.limits)
        check_path(entry.path, self.limits)
        self._check_sizes(entry)
        self._check_neighbours(entry)
        if not entry.is_folder:
            self.files.add(entry.path)

    def _check_sizes(self, entry: Entry) -> None:
        limits = self.limits
        if entry.size > limits.file_bytes:
            raise ArchiveInvalid(f"unpacks to {entry.size} bytes; the limit is {limits.file_bytes}", entry=entry.path)
        check_ratio(entry.size, entry.packed, limits, entry.path)
        self.total += entry.size
        if self.total > limits.total_bytes:
            raise ArchiveInvalid(f"unpacks to more than {limits.total_bytes} bytes in total, the limit")
        if _fold(entry.path) == _fold(MANIFEST_PATH) and entry.size > limits.manifest_bytes:
            raise ArchiveInvalid(
                f"the manifest has {entry.size} bytes; the limit is {limits.manifest_bytes}", entry=entry.path
            )

    def _check_neighbours(self, entry: Entry) -> None:
        parts = entry.path.split("/")
        for depth in range(1, len(parts)):
            self._claim("/".join(parts[:depth]), is_folder=True, is_entry=False)
        self._claim(entry.path, is_folder=entry.is_folder, is_entry=True)
        if _fold(entry.path) == _fold(MANIFEST_PATH) and (entry.path != MANIFEST_PATH or entry.is_folder):
            raise ArchiveInvalid(f"the manifest has to be a file spelled {MANIFEST_PATH}", entry=entry.path)

    def _claim(self, path: str, *, is_folder: bool, is_entry: bool) -> None:
        folded = _fold(path)
        known = self._kinds.get(folded)
        if known is None:
            self._kinds[folded] = (path, is_folder, is_entry)
            return
        spelling, was_folder, was_entry = known
        if is_folder != was_folder:
            raise ArchiveInvalid("is a file and a folder at once; rename one of them", entry=path)
        if spelling != path:
            raise ArchiveInvalid(
                f"differs from {spelling!a} only in letter case or Unicode form; rename one of them", entry=path
            )
        if is_entry and (was_entry or not is_folder):
            raise ArchiveInvalid("stands in the archive twice; pack it again with each file once", entry=path)
        if is_entry:
            self._kinds[folded] = (path, is_folder, True)


def check_count(count: int, limits: ArchiveLimits) -> None:
    """Refuses an archive of too many entries."""
    if count > limits.entries:
        raise ArchiveInvalid(f"has more than {limits.entries} entries, the limit")


def check_ratio(size: int, packed: int, limits: ArchiveLimits, path: str | None = None) -> None:
    """Refuses what unpacks to far more than it takes packed."""
    if size > limits.ratio_floor_bytes and size > limits.ratio * packed:
        raise ArchiveInvalid(
            f"unpacks from {packed} to {size} bytes, more than {limits.ratio} to 1; "
            "store it uncompressed (--archive-format zip-store or no-archive)",
            entry=path,
        )


def check_path(path: str, limits: ArchiveLimits) -> None:
    """Refuses a path that is not a plain, relative, portable one; raises ArchiveInvalid."""
    reason = _fault_of_path(path, limits)
    if reason is not None:
        raise ArchiveInvalid(f"{reason}; rename it and pack the archive again", entry=path)


def _fault_of_path(path: str, limits: ArchiveLimits) -> str | None:
    if not path:
        return "has an empty name"
    # Code points first: what follows may then encode the path, which lone surrogates would break.
    if not path.isprintable():
        return "has a control, formatting or undecodable character in its name"
    if "\\" in path:
        return "has a backslash in its name"
    if path.startswith("/"):
        return "is an absolute path"
    if path.startswith("~"):
        return "starts with '~'"
    if _DRIVE.match(path):
        return "starts with a drive letter"
    if len(path.encode()) > limits.path_bytes:
        return f"has a path of more than {limits.path_bytes} bytes"
    parts = path.split("/")
    if len(parts) > limits.depth:
        return f"lies more than {limits.depth} folders deep"
    return next((fault for fault in (_fault_of_component(part, limits) for part in parts) if fault), None)


def _fault_of_component(part: str, limits: ArchiveLimits) -> str | None:
    if not part:
        return "has an empty component in its path"
    if part in (".", ".."):
        return f"has '{part}' in its path"
    if part[-1] in " .":
        return "has a component that ends in a space or a dot"
    if len(part.encode()) > limits.name_bytes:
        return f"has a component of more than {limits.name_bytes} bytes"
    return None


def _fold(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
