"""The model store: archives by name in one directory, unpacked one folder each in a scratch directory of our own."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from torchd_archiver import mar
from torchd_archiver.errors import ArchiveInvalid as MarInvalid
from torchd_server import errors
from torchd_server.faults import fault

CONFIG_BYTES = 256 * 1024
CONFIG_ALIASES = 50
CONFIG_NODES = 10_000
ARCHIVE_SUFFIXES = (".mar", ".tar.gz", ".tgz")


@dataclass(frozen=True, slots=True)
class UnpackedModel:
    """An archive ready to be loaded. `source` is the name it was asked for by."""

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


class ModelStore:
    """Finds archives and unpacks them."""

    def __init__(self, directory: Path | None, scratch: Path) -> None:
        self._directory = directory
        self._scratch = scratch
        self._numbers = itertools.count(1)

    def names(self) -> list[str]:
        """Every archive there is, in order of its name."""
        try:
            entries = list(self._directory.iterdir()) if self._directory is not None else []
        except OSError:  # taken away meanwhile: it holds nothing
            return []
        return sorted(entry.name for entry in entries if self._is_archive(entry))

    async def fetch(self, url: str) -> UnpackedModel:
        """Unpacks the archive of this name; raises ArchiveNotFound, UrlNotAllowed or ArchiveInvalid."""
        path = self._find(url)
        destination = self._scratch / str(next(self._numbers))
        try:
            return await asyncio.to_thread(_unpack, url, path, destination)
        except MarInvalid as error:
            entry = f": entry {error.entry!r}" if error.entry is not None else ""
            raise errors.ArchiveInvalid(f"archive '{url}'{entry}: {error.reason}") from error
        except OSError as error:
            raise errors.ArchiveInvalid(f"archive '{url}' cannot be read: {error.strerror or error}") from error

    async def drop(self, model: UnpackedModel) -> None:
        """Removes what `fetch` unpacked."""
        if model.is_ours:
            await asyncio.to_thread(shutil.rmtree, model.directory, ignore_errors=True)

    def _find(self, url: str) -> Path:
        if not url:
            raise errors.BadRequest("Parameter url is required.")
        if self._directory is None:
            raise errors.ArchiveNotFound("Model store has not been configured; start with --model-store DIRECTORY.")
        if "://" in url:
            raise errors.UrlNotAllowed(
                f"Given URL {url} does not match any allowed URL(s); put the archive into the model store"
            )
        if ".." in url.split("/") or "\\" in url or "\0" in url:
            raise errors.UrlNotAllowed(f"Relative path is not allowed in url: {url}")
        if "/" in url.rstrip("/"):
            raise errors.UrlNotAllowed(f"'{url}' is a path; give the name of a file in the model store")
        name = url.rstrip("/")
        if name in ("", "."):
            raise errors.BadRequest(f"'{url}' names no archive; give the name of a file in the model store")
        path = self._directory / name
        try:
            is_elsewhere = path.is_symlink() and self._directory.resolve() not in path.resolve().parents
            exists = path.exists()
        except (OSError, RuntimeError):  # a name too long, a loop of links
            is_elsewhere = exists = False
        if is_elsewhere:
            raise errors.UrlNotAllowed(f"'{url}' is a link out of the model store")
        if not exists:
            known = errors.some_of(self.names())
            raise errors.ArchiveNotFound(f"Model not found at: {url[:200]} (the model store has {known})")
        return path

    def _is_archive(self, entry: Path) -> bool:
        if entry.is_dir():
            return (entry / "MAR-INF").is_dir()
        return entry.name.endswith(ARCHIVE_SUFFIXES)


def _unpack(url: str, path: Path, destination: Path) -> UnpackedModel:
    fault("store.unpack")
    with mar.open_archive(path) as archive:
        directory = archive.unpack(destination)
        manifest = archive.manifest
    is_ours = directory == destination
    try:
        config = _read_config(directory, manifest.config_file)
        config_json = _as_json(config, manifest.config_file)
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
    )


def _read_config(directory: Path, name: str | None) -> Mapping[str, Any]:
    """model-config.yaml as a mapping; what it may cost to read is bounded."""
    if name is None:
        return {}
    path = directory / Path(name).name
    try:
        document = path.read_bytes()
    except OSError as error:
        raise errors.ArchiveInvalid(
            f"the manifest names config file '{name}', which cannot be read: {error}"
        ) from error
    if len(document) > CONFIG_BYTES:
        raise errors.ArchiveInvalid(f"config file '{name}' has {len(document)} bytes; at most {CONFIG_BYTES} will do")
    try:
        config = yaml.load(document, _BoundedLoader)
    except Exception as error:  # PyYAML's constructors let KeyError, IndexError and more through
        raise errors.ArchiveInvalid(f"config file '{name}' is not YAML that will do: {_yaml_fault(error)}") from error
    if config is None:
        return {}
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise errors.ArchiveInvalid(f"config file '{name}' must be a mapping of names to values")
    return config


def _yaml_fault(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} (line {error.problem_mark.line + 1})"
    return " ".join(str(error).split())


def _as_json(config: Mapping[str, Any], name: str | None) -> str:
    """The file as the worker is told it; dates and the like become text."""
    try:
        return json.dumps(config, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise errors.ArchiveInvalid(f"config file '{name}' has what JSON cannot say: {error}") from error


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader with a cap on what the document stands for: a few aliases can stand for gigabytes."""

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        # Nodes each node stands for, aliases followed. The nodes themselves are kept, so that no id is used twice.
        self._sizes: dict[int, tuple[int, yaml.Node]] = {}
        self._aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        self._aliases += is_alias
        if self._aliases > CONFIG_ALIASES:
            raise yaml.YAMLError(f"it has more than {CONFIG_ALIASES} aliases")
        node = super().compose_node(parent, index)
        if node is None:
            return None
        if id(node) not in self._sizes:
            if is_alias:
                raise yaml.YAMLError("an alias inside what it stands for")
            self._sizes[id(node)] = (1 + sum(self._sizes[id(child)][0] for child in _children(node)), node)
        if self._sizes[id(node)][0] > CONFIG_NODES:
            raise yaml.YAMLError(f"it stands for more than {CONFIG_NODES} values")
        return node


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
