"""Workflow archives (.war): packing them as torch-workflow-archiver does, and unpacking them with the model archives'
strict readers."""

import io
import json
import os
import shutil
import stat
import zipfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from torchd_archiver import mar
from torchd_archiver.entries import ArchiveLimits, Entry, Inventory
from torchd_archiver.errors import ArchiveInvalid, PackFailed, naming, shown
from torchd_archiver.manifest import NAME, parse_document, written_at
from torchd_archiver.packing import ZipSink, open_source, replacing, status_of

MANIFEST_PATH = "WAR-INF/MANIFEST.json"
ARCHIVER_VERSION = "0.2.15"
"""The torch-workflow-archiver whose format we write."""


@dataclass(frozen=True, slots=True)
class WorkflowManifest:
    """What a workflow archive says about itself; `handler` is None where no node is a function."""

    workflow_name: str
    spec_file: str
    handler: str | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.workflow_name):
            raise _invalid(f"workflow name {shown(self.workflow_name)} does not fit")
        for key, value in (("specFile", self.spec_file), ("handler", self.handler)):
            # Both lie beside each other at the root, as torch-workflow-archiver puts them.
            if value is not None and (os.path.basename(value) != value or value in ("", ".", "..") or "\\" in value):
                raise _invalid(f"{key} {shown(value)} is no file at the root of the archive")

    @classmethod
    def from_json(cls, document: bytes, limits: ArchiveLimits | None = None) -> "WorkflowManifest":
        """Reads a WAR-INF/MANIFEST.json; raises ArchiveInvalid for whatever is not one."""
        raw = parse_document(document, (limits or ArchiveLimits()).manifest_bytes)
        workflow = raw.get("workflow") if isinstance(raw, dict) else None
        if not isinstance(workflow, dict):
            raise _invalid("has no object 'workflow'")
        name, spec, handler = (workflow.get(key) for key in ("workflowName", "specFile", "handler"))
        if not isinstance(name, str) or not isinstance(spec, str) or not isinstance(handler, str | None):
            raise _invalid(
                "needs the strings workflow.workflowName and workflow.specFile, and may have workflow.handler"
            )
        return cls(name, spec, handler or None)

    def to_json(self, created_on: datetime) -> str:
        """The manifest as torch-workflow-archiver writes it, key for key."""
        workflow: dict[str, Any] = {"workflowName": self.workflow_name, "specFile": self.spec_file}
        if self.handler is not None:
            workflow["handler"] = self.handler
        document = {"createdOn": written_at(created_on), "workflow": workflow, "archiverVersion": ARCHIVER_VERSION}
        return json.dumps(document, indent=2)


@dataclass(frozen=True, slots=True)
class WorkflowPackRequest:
    """What to pack and where to; the fields are torch-workflow-archiver's flags."""

    workflow_name: str
    spec_file: Path
    handler: Path | None = None
    extra_files: tuple[Path, ...] = ()
    export_path: Path = Path()
    force: bool = False
    created_on: datetime | None = None
    """None is now."""


def pack(request: WorkflowPackRequest) -> Path:
    """Packs and answers the path written; raises PackFailed, ArchiveInvalid or OSError."""
    handler = request.handler.name if request.handler is not None else None
    manifest = WorkflowManifest(request.workflow_name, request.spec_file.name, handler)
    files: dict[str, Path] = {}
    inventory = Inventory(ArchiveLimits())
    for source in (request.spec_file, request.handler, *request.extra_files):
        if source is None:
            continue
        if not _is_file(source):
            raise PackFailed(f"'{source}' is a folder; a workflow archive holds files")
        if files.setdefault(source.name, source) != source:
            raise PackFailed(f"'{files[source.name]}' and '{source}' have one name; rename one of them")
    for name in sorted(files):
        size = files[name].stat().st_size
        inventory.add(Entry(name, False, size, size))
    if not request.export_path.is_dir():
        raise PackFailed(
            f"Given export-path {request.export_path} is not a directory. Point to a valid export-path directory."
        )
    target = request.export_path / f"{request.workflow_name}.war"
    if os.path.lexists(target) and not request.force:
        raise PackFailed(f"{target} already exists; give --force (-f) to overwrite it")
    with replacing(target) as unfinished:
        sink = ZipSink(unfinished, zipfile.ZIP_DEFLATED)
        for name in sorted(files):
            with open_source(files[name], follow_links=False) as file:
                sink.add(name, os.fstat(file.fileno()).st_size, file)
        document = manifest.to_json(request.created_on or datetime.now()).encode()
        sink.add(MANIFEST_PATH, len(document), io.BytesIO(document))
        sink.close()
    return target


def unpack(path: Path, destination: Path, limits: ArchiveLimits | None = None) -> tuple[Path, WorkflowManifest]:
    """Unpacks a workflow archive into a new folder; a plain folder is used where it lies.

    Raises ArchiveInvalid or OSError, and then leaves nothing behind.
    """
    limits = limits or ArchiveLimits()
    with naming(str(path)), mar.open_archive(path, limits) as archive:
        if MANIFEST_PATH not in archive.files:
            raise ArchiveInvalid(f"has no {MANIFEST_PATH}; pack it with torch-workflow-archiver")
        folder = archive.unpack(destination)
        try:
            with (folder / MANIFEST_PATH).open("rb") as file:
                manifest = WorkflowManifest.from_json(file.read(limits.manifest_bytes + 1), limits)
            missing = {manifest.spec_file, *([manifest.handler] if manifest.handler else [])} - archive.files
            if missing:
                raise _invalid(f"names the file {shown(min(missing))}, which the archive has not")
        except BaseException:
            if folder == destination:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder, manifest


def _is_file(source: Path) -> bool:
    return stat.S_ISREG(status_of(source, follow_links=False).st_mode)


def _invalid(reason: str) -> ArchiveInvalid:
    return ArchiveInvalid(reason, entry=MANIFEST_PATH)
