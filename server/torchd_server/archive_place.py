"""Where archives lie: one directory, by name, and what an allowed URL brings into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torchd_server import errors
from torchd_server.download import Downloads

MODEL_SUFFIXES = (".mar", ".tar.gz", ".tgz")
WORKFLOW_SUFFIXES = (".war",)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of archives: their suffixes, the folder that marks an unpacked one, the words for them."""

    suffixes: tuple[str, ...]
    mark: str
    place: str
    flag: str
    not_found: str
    missing: type[errors.ArchiveNotFound]


MODELS = Kind(MODEL_SUFFIXES, "MAR-INF", "model store", "--model-store", "Model not found at:", errors.ArchiveNotFound)
WORKFLOWS = Kind(
    WORKFLOW_SUFFIXES,
    "WAR-INF",
    "workflow store",
    "--workflow-store",
    "Workflow not found in workflow store:",
    errors.WorkflowArchiveNotFound,
)


@dataclass(frozen=True, slots=True)
class Located:
    """An archive on this machine; one that was downloaded goes when its model goes."""

    path: Path
    is_downloaded: bool


class ArchivePlace:
    """Finds archives in one directory, and downloads into it."""

    def __init__(self, directory: Path | None, downloads: Downloads | None = None, kind: Kind = MODELS) -> None:
        self._directory = directory
        self._downloads = downloads
        self._kind = kind

    def names(self) -> list[str]:
        """Every archive there is, in order of its name."""
        try:
            entries = list(self._directory.iterdir()) if self._directory is not None else []
        except OSError:  # taken away meanwhile: it holds nothing
            return []
        return sorted(entry.name for entry in entries if self._is_archive(entry))

    async def clear(self) -> None:
        """Removes what killed daemons left of their downloads."""
        if self._downloads is not None and self._directory is not None:
            await self._downloads.clear(self._directory)

    async def locate(self, url: str, s3_sse_kms: bool = False) -> Located:
        """The archive of this name or URL; raises ArchiveNotFound, UrlNotAllowed, DownloadFailed or BadRequest."""
        if not url:
            raise errors.BadRequest("Parameter url is required.")
        if self._directory is None:
            place = self._kind.place.capitalize()
            raise self._kind.missing(f"{place} has not been configured; start with {self._kind.flag} DIRECTORY.")
        if "://" not in url:
            return Located(self._find(url, self._directory), False)
        if self._downloads is None:
            raise errors.UrlNotAllowed(
                f"Given URL {url[:200]} does not match any allowed URL(s); put the archive into the {self._kind.place}"
            )
        return Located(await self._downloads.fetch(url, self._directory, s3_sse_kms), True)

    def _find(self, url: str, directory: Path) -> Path:
        if ".." in url.split("/") or "\\" in url or "\0" in url:
            raise errors.UrlNotAllowed(f"Relative path is not allowed in url: {url}")
        if "/" in url.rstrip("/"):
            raise errors.UrlNotAllowed(f"'{url}' is a path; give the name of a file in the {self._kind.place}")
        name = url.rstrip("/")
        if name in ("", "."):
            raise errors.BadRequest(f"'{url}' names no archive; give the name of a file in the {self._kind.place}")
        path = directory / name
        try:
            is_elsewhere = path.is_symlink() and directory.resolve() not in path.resolve().parents
            exists = path.exists()
        except (OSError, RuntimeError):  # a name too long, a loop of links
            is_elsewhere = exists = False
        if is_elsewhere:
            raise errors.UrlNotAllowed(f"'{url}' is a link out of the {self._kind.place}")
        if not exists:
            known = errors.some_of(self.names())
            raise self._kind.missing(f"{self._kind.not_found} {url[:200]} (the {self._kind.place} has {known})")
        return path

    def _is_archive(self, entry: Path) -> bool:
        if entry.is_dir():
            return (entry / self._kind.mark).is_dir()
        return entry.name.endswith(self._kind.suffixes)
