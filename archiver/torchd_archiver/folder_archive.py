"""A plain folder as a model archive: held to the rules of the packed kinds, and used where it lies."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from torchd_archiver.entries import MANIFEST_PATH, ArchiveLimits, Entry, Inventory
from torchd_archiver.errors import ArchiveInvalid


class FolderArchive:
    """A folder whose every file has been checked; one that only wraps another folder stands for that one."""

    def __init__(self, folder: Path, limits: ArchiveLimits) -> None:
        self.folder = _unwrapped(folder)
        self._limits = limits
        self.inventory = Inventory(limits)
        for entry in walk(self.folder, limits):
            self.inventory.add(entry)

    def read_manifest(self) -> bytes | None:
        """The bytes of the manifest, None where there is none."""
        if MANIFEST_PATH not in self.inventory.files:
            return None
        descriptor = os.open(self.folder / MANIFEST_PATH, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            return file.read(self._limits.manifest_bytes + 1)


def walk(folder: Path, limits: ArchiveLimits, inner: str = "") -> Iterator[Entry]:
    """Every file and folder below, in order of name; raises ArchiveInvalid at a link or a device."""
    if inner.count("/") > limits.depth:
        raise ArchiveInvalid(f"lies more than {limits.depth} folders deep", entry=inner)
    with os.scandir(folder) as found:
        # Not sorted as a whole: what is beyond the limit is not worth the memory.
        children = sorted(
            (child for child, _ in zip(found, range(limits.entries + 1), strict=False)), key=lambda c: c.name
        )
    for child in children:
        path = f"{inner}{child.name}"
        status = child.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            yield Entry(path, True, 0, 0)
            yield from walk(Path(child.path), limits, f"{path}/")
        elif stat.S_ISREG(status.st_mode):
            yield Entry(path, False, status.st_size, status.st_size)
        else:
            raise ArchiveInvalid(
                "is a link or device; put the file itself there (cp -rL copies what links mean)", entry=path
            )


def _unwrapped(folder: Path) -> Path:
    with os.scandir(folder) as found:
        children = [child for child, _ in zip(found, range(2), strict=False)]
    if len(children) == 1 and children[0].is_dir(follow_symlinks=False) and children[0].name != "MAR-INF":
        return folder / children[0].name
    return folder
