"""The model store: archives found by name or URL, unpacked one folder each in a scratch directory of our own."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchd_archiver import mar
from torchd_archiver.errors import ArchiveInvalid as MarInvalid
from torchd_archiver.manifest import OLD_KEYS
from torchd_server import errors
from torchd_server.archive_place import ArchivePlace
from torchd_server.bounded_yaml import YamlInvalid, read_mapping
from torchd_server.dependencies import Dependencies
from torchd_server.download import Downloads
from torchd_server.faults import fault

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UnpackedModel:
    """An archive ready to be loaded. `source` is the name it was asked for by; "" for a function of a workflow."""

    source: str
    directory: Path
    model_name: str
    version: str
    handler: str
    runtime: str
    config: Mapping[str, Any]
    config_json: str
    manifest_json: str
    # False where the archive is a folder of the store itself, which is served in place.
    is_ours: bool
    requirements: Path | None = None
    # The interpreter of its own virtual environment, and where that lies; None runs the daemon's.
    python: Path | None = None
    venv: Path | None = None
    # The file in the store that came from a URL with it, and goes with it.
    downloaded: Path | None = None


class ModelStore:
    """Finds archives, unpacks them and installs what they need, where the operator lets archives bring packages."""

    def __init__(
        self,
        directory: Path | None,
        scratch: Path,
        downloads: Downloads | None = None,
        dependencies: Dependencies | None = None,
        *,
        default_handler: str = "",
        use_venv: bool = False,
    ) -> None:
        self._place = ArchivePlace(directory, downloads)
        self._scratch = scratch
        self._dependencies = dependencies
        self._default_handler = default_handler
        self._use_venv = use_venv
        self._numbers = itertools.count(1)

    def names(self) -> list[str]:
        """Every archive there is, in order of its name."""
        return self._place.names()

    async def clear(self) -> None:
        """Removes what killed daemons left of their downloads."""
        await self._place.clear()

    async def fetch(self, url: str, model_name: str = "", s3_sse_kms: bool = False) -> UnpackedModel:
        """Unpacks the archive of this name or URL; raises ArchiveNotFound, UrlNotAllowed, DownloadFailed,
        ArchiveInvalid or DependenciesFailed. Whatever it raises, nothing is left behind."""
        located = await self._place.locate(url, s3_sse_kms)
        downloaded = located.path if located.is_downloaded else None
        destination = self._scratch / str(next(self._numbers))
        try:
            model = await asyncio.to_thread(_unpack, url, located.path, destination)
        except BaseException as error:
            if downloaded is not None:
                downloaded.unlink(missing_ok=True)
            if isinstance(error, MarInvalid | OSError):
                raise unreadable(url, error) from error
            raise
        model = replace(model, downloaded=downloaded, handler=model.handler or self._default_handler)
        try:
            return await self._with_dependencies(model, model_name or model.model_name or url, destination)
        except BaseException:
            await self.drop(replace(model, venv=_venv(destination)))
            raise

    async def drop(self, model: UnpackedModel) -> None:
        """Removes what `fetch` unpacked, installed and downloaded."""
        for folder in (model.directory if model.is_ours else None, model.venv):
            if folder is not None:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if model.downloaded is not None:
            model.downloaded.unlink(missing_ok=True)

    async def _with_dependencies(self, model: UnpackedModel, name: str, destination: Path) -> UnpackedModel:
        wants_venv = model.config.get("useVenv", self._use_venv) is True
        if model.requirements is None and not wants_venv:
            return model
        if self._dependencies is None:
            logger.warning("%s: its requirements are not installed (install_py_dep_per_model is off)", model.source)
            return model
        # A folder of the store is not ours to write into: what it needs goes into an environment beside it.
        if model.is_ours and not wants_venv and model.requirements is not None:
            await self._dependencies.into_folder(name, model.requirements, model.directory)
            return model
        venv = _venv(destination)
        return replace(model, venv=venv, python=await self._dependencies.into_venv(name, model.requirements, venv))


def _venv(destination: Path) -> Path:
    return destination.with_name(f"{destination.name}-venv")


def unreadable(url: str, error: MarInvalid | OSError) -> errors.ArchiveInvalid:
    """What was wrong with an archive, in our words."""
    if isinstance(error, OSError):
        return errors.ArchiveInvalid(f"archive '{url}' cannot be read: {error.strerror or error}")
    entry = f": entry {error.entry!r}" if error.entry is not None else ""
    return errors.ArchiveInvalid(f"archive '{url}'{entry}: {error.reason}")


def _unpack(url: str, path: Path, destination: Path) -> UnpackedModel:
    fault("store.unpack")
    with mar.open_archive(path) as archive:
        directory = archive.unpack(destination)
        manifest = archive.manifest
    is_ours = directory == destination
    if OLD_KEYS & manifest.raw.keys():
        logger.warning("archive %s was made by an archiver before 0.2; pack it again when you can", url)
    try:
        config = _read_config(directory, manifest.config_file)
        config_json = _as_json(config, manifest.config_file)
        if manifest.runtime == "LSP":
            raise errors.ArchiveInvalid(f"archive '{url}' is for the C++ backend (runtime LSP), which torchd has not")
    except BaseException:
        if is_ours:
            shutil.rmtree(directory, ignore_errors=True)
        raise
    return UnpackedModel(
        source=url,
        directory=directory,
        model_name=manifest.model_name or "",
        version=manifest.model_version or "1.0",
        handler=manifest.handler or "",
        runtime=manifest.runtime or "python",
        config=config,
        config_json=config_json,
        manifest_json=json.dumps(dict(manifest.raw)),
        is_ours=is_ours,
        requirements=directory / manifest.requirements_file if manifest.requirements_file else None,
    )


def _read_config(directory: Path, name: str | None) -> Mapping[str, Any]:
    """model-config.yaml as a mapping; what it may cost to read is bounded."""
    if name is None:
        return {}
    try:
        return read_mapping(directory / Path(name).name)
    except OSError as error:
        raise errors.ArchiveInvalid(
            f"the manifest names config file '{name}', which cannot be read: {error}"
        ) from error
    except YamlInvalid as error:
        raise errors.ArchiveInvalid(f"config file '{name}' {error}") from error


def _as_json(config: Mapping[str, Any], name: str | None) -> str:
    """The file as the worker is told it; dates and the like become text."""
    try:
        return json.dumps(config, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise errors.ArchiveInvalid(f"config file '{name}' has what JSON cannot say: {error}") from error
