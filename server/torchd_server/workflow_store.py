"""The workflow store: .war archives found by name or URL, unpacked and read into a specification."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path

from torchd_archiver import war
from torchd_archiver.errors import ArchiveInvalid as ArchiveRefused
from torchd_server import errors
from torchd_server.archive_place import WORKFLOWS, ArchivePlace
from torchd_server.bounded_yaml import YamlInvalid, read_mapping
from torchd_server.download import Downloads
from torchd_server.workflow_spec import WorkflowSpec, parse_spec


@dataclass(frozen=True, slots=True)
class UnpackedWorkflow:
    """A workflow archive ready to be registered. `handler` is its file of functions, "" without one."""

    source: str
    name: str
    directory: Path
    handler: str
    spec: WorkflowSpec
    is_ours: bool
    downloaded: Path | None


class WorkflowStore:
    """Finds workflow archives and unpacks them."""

    def __init__(self, directory: Path | None, scratch: Path, downloads: Downloads | None = None) -> None:
        self._place = ArchivePlace(directory, downloads, WORKFLOWS)
        self._scratch = scratch
        self._numbers = itertools.count(1)

    async def clear(self) -> None:
        """Removes what killed daemons left of their downloads."""
        await self._place.clear()

    async def fetch(self, url: str, s3_sse_kms: bool = False) -> UnpackedWorkflow:
        """Unpacks the archive of this name or URL; raises WorkflowArchiveNotFound, UrlNotAllowed, DownloadFailed or
        WorkflowInvalid, and then leaves nothing behind."""
        located = await self._place.locate(url, s3_sse_kms)
        downloaded = located.path if located.is_downloaded else None
        destination = self._scratch / f"workflow-{next(self._numbers)}"
        try:
            return await asyncio.to_thread(_unpack, url, located.path, destination, downloaded)
        except BaseException as error:
            if downloaded is not None:
                downloaded.unlink(missing_ok=True)
            if isinstance(error, ArchiveRefused | OSError | YamlInvalid):
                raise errors.WorkflowInvalid(f"workflow archive '{url}': {error}") from error
            raise

    async def drop(self, workflow: UnpackedWorkflow) -> None:
        """Removes what `fetch` unpacked and downloaded."""
        if workflow.is_ours:
            await asyncio.to_thread(shutil.rmtree, workflow.directory, ignore_errors=True)
        if workflow.downloaded is not None:
            workflow.downloaded.unlink(missing_ok=True)


def _unpack(url: str, path: Path, destination: Path, downloaded: Path | None) -> UnpackedWorkflow:
    folder, manifest = war.unpack(path, destination)
    is_ours = folder == destination
    try:
        spec = parse_spec(read_mapping(folder / manifest.spec_file))
        handler = manifest.handler or ""
        if spec.has_functions and not handler:
            names = ", ".join(node.name for node in spec.nodes if node.is_function)
            raise errors.WorkflowInvalid(f"nodes {names} are functions, and the archive has no handler file for them")
    except BaseException:
        if is_ours:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return UnpackedWorkflow(url, manifest.workflow_name, folder, handler, spec, is_ours, downloaded)
