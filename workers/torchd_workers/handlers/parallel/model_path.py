"""Where a model's files are: in the archive, in a folder of the host, or in the local Hugging Face cache."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchd_workers.handlers.optional_libraries import library

# A name on the hub: "org/name", or "name" of the oldest ones.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# What a download leaves out: the same weights for other libraries.
OTHER_LIBRARIES = ["*.h5", "*.msgpack", "*.onnx", "*.ot", "*.tflite", "*.gguf", "original/*", "onnx/*", "openvino/*"]


class ModelNotFound(FileNotFoundError):
    """A model's files are nowhere they were looked for."""


def model_path(context: Any, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder that `handler.model_path` of model-config.yaml names; without one, the archive itself.

    A folder in the archive, an absolute folder of the host, or the name of a model in the local Hugging Face cache
    (`handler.revision`, by default main). Nothing is fetched unless `handler.download` is true.
    """
    said = context.model_yaml_config.get("handler") or {}
    archive = Path(context.system_properties["model_dir"])
    name = said.get("model_path")
    if name is None:
        return _with_files(archive)
    if not isinstance(name, str) or not name:
        raise ModelNotFound(
            f"model-config.yaml has handler.model_path: {name!r}; it must be a folder or a model's name"
        )
    download = said.get("download", False)
    if not isinstance(download, bool):
        raise ModelNotFound(f"model-config.yaml has handler.download: {download!r}; it must be true or false")
    return find_model(name, archive, said.get("revision"), download, environment)


def find_model(
    name: str,
    archive: Path,
    revision: str | None = None,
    download: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> Path:
    """The folder of the model `name`, which `model_path` explains."""
    if Path(name).is_absolute():
        if not Path(name).is_dir():
            raise ModelNotFound(f"handler.model_path is {name}, and this host has no such folder")
        return _with_files(Path(name))
    inside = Path(os.path.normpath(archive / name))
    if not inside.is_relative_to(os.path.normpath(archive)):
        raise ModelNotFound(f"handler.model_path is {name}, which leaves the archive; say an absolute folder instead")
    if inside.is_dir():
        return _with_files(inside)
    if not HUB_NAME.fullmatch(name):
        raise ModelNotFound(
            f"handler.model_path is {name}: the archive has no such folder, and it is no name of a model"
        )
    return _in_cache(name, inside, revision, download, environment)


def _with_files(folder: Path) -> Path:
    """The folder itself, or the snapshot in it where it is one model of a Hugging Face cache (models--org--name)."""
    snapshots = folder / "snapshots"
    if (folder / "config.json").exists() or not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    if main.is_file() and (snapshots / main.read_text().strip()).is_dir():
        return snapshots / main.read_text().strip()
    found = sorted(path for path in snapshots.iterdir() if path.is_dir())
    if len(found) != 1:
        raise ModelNotFound(f"{folder} has {len(found)} snapshots and no refs/main that names one; name the snapshot")
    return found[0]


def _in_cache(name: str, inside: Path, revision: str | None, download: bool, environment: Mapping[str, str]) -> Path:
    hub, constants, errors = (
        library(module, f"the model {name}", "huggingface_hub")
        for module in ("huggingface_hub", "huggingface_hub.constants", "huggingface_hub.errors")
    )
    # huggingface_hub has read HF_HOME, HF_HUB_CACHE and HUGGINGFACE_HUB_CACHE; it knows the oldest name no longer.
    named = [constants.HF_HUB_CACHE, environment.get("TRANSFORMERS_CACHE")]
    caches = list(dict.fromkeys(filter(None, named)))
    for cache in caches:
        try:
            return Path(hub.snapshot_download(name, revision=revision, cache_dir=cache, local_files_only=True))
        except errors.LocalEntryNotFoundError:
            continue
    looked = f"the archive ({inside}) nor in the Hugging Face cache ({', '.join(caches)})"
    at = f" at revision {revision}" if revision else ""
    if not download:
        raise ModelNotFound(
            f"the model {name}{at} is neither in {looked}. Fetch it before with: hf download {name}; or say "
            "download: true under handler: in model-config.yaml, and the worker fetches it when it loads"
        )
    if constants.HF_HUB_OFFLINE:
        raise ModelNotFound(
            f"the model {name}{at} is neither in {looked}, and handler.download is of no use: HF_HUB_OFFLINE is set"
        )
    return Path(hub.snapshot_download(name, revision=revision, ignore_patterns=OTHER_LIBRARIES))
