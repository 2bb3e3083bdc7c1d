"""Snapshots of the registered models in `$LOG_LOCATION/config`: TorchServe's file, which either server reads back.

A snapshot is written beside its place and renamed, so there is the old or the new one and never half of one. Which is
the newest is said by a generation counter inside, not by a clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from torchd_server.settings import RegisteredModel
from torchd_server.torchserve import properties_format

GENERATION = "torchd_snapshot_generation"
KEPT = 5
# A thousand models take less than one; what is larger is no snapshot.
MOST_CHARACTERS = 16 * 1024 * 1024
_STAGING = ".new"
_NAME = re.compile(r"\d{17}-(startup|snapshot|shutdown)\.cfg")


@dataclass(frozen=True, slots=True)
class Choice:
    """The newest complete snapshot (None: there is none), and those that are not complete."""

    file: Path | None
    torn: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    file: Path
    generation: int
    is_complete: bool
    is_ours: bool


def choose(folder: Path) -> Choice:
    """The snapshot to start from."""
    found = _newest_first(folder)
    return Choice(
        next((one.file for one in found if one.is_complete), None),
        tuple(one.file.name for one in found if not one.is_complete),
    )


def write(
    folder: Path, kind: str, properties: Mapping[str, str], models: Sequence[RegisteredModel], now: datetime
) -> Path:
    """Writes the next snapshot ("startup", "snapshot" or "shutdown") and removes those too old; raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "startup":
        for left in folder.glob(f".*.cfg{_STAGING}"):  # by one who was killed while writing
            left.unlink(missing_ok=True)
    present = _newest_first(folder)
    generation = max((found.generation for found in present), default=0) + 1
    name = f"{now:%Y%m%d%H%M%S}{now.microsecond // 1000:03d}-{kind}.cfg"
    document = {**properties, GENERATION: str(generation), "model_snapshot": _models_document(name, models, now)}
    _replace(folder, name, properties_format.write(document).encode(properties_format.ENCODING))
    others = [found for found in present if found.file.name != name]
    torn = [found for found in others if not found.is_complete]
    for old in [*torn, *[found for found in others if found.is_complete and found.is_ours][KEPT - 1 :]]:
        old.file.unlink(missing_ok=True)
    return folder / name


def _models_document(name: str, models: Sequence[RegisteredModel], now: datetime) -> str:
    """TorchServe's JSON, and beside it what it forgets: the handler and the URL of the register call."""
    listed: dict[str, dict[str, Any]] = {}
    for model in models:
        settings = model.settings
        state: dict[str, Any] = {
            "defaultVersion": model.is_default,
            "marName": model.source.rstrip("/").rpartition("/")[2],
            "minWorkers": settings.min_workers,
            "maxWorkers": settings.max_workers,
            "batchSize": settings.batch_size,
            "maxBatchDelay": settings.max_batch_delay_ms,
            "responseTimeout": settings.response_timeout,
            "startupTimeout": settings.startup_timeout,
            "runtimeType": settings.runtime,
        }
        if settings.parallel_level:
            state["parallelLevel"] = settings.parallel_level
        if settings.handler:
            state["handler"] = settings.handler
        if "://" in model.source:
            state["modelUrl"] = model.source
        listed.setdefault(model.name, {})[model.version] = state
    return json.dumps(
        {
            "name": name,
            "modelCount": len(models),
            "created": int(now.timestamp() * 1000),
            "models": listed,
        },
        indent=2,
    )


def _newest_first(folder: Path) -> list[_Found]:
    try:
        files = [file for file in folder.iterdir() if _NAME.fullmatch(file.name) and file.is_file()]
    except OSError:
        return []
    found = [_read(file) for file in files]
    # TorchServe's own snapshots carry the generation of the one it started from: among equals the name's time decides.
    return sorted(found, key=lambda one: (one.generation, one.file.name), reverse=True)


def _read(file: Path) -> _Found:
    try:
        properties = _properties_of(file)
        generation = int(properties.get(GENERATION, "0"))
        models = json.loads(properties["model_snapshot"])
        count = sum(len(versions) for versions in models["models"].values())
        is_complete = models.get("modelCount", count) in (count, len(models["models"]))
        return _Found(file, generation, is_complete, GENERATION in properties)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return _Found(file, _generation_of(file), False, False)


def _generation_of(file: Path) -> int:
    """Of a torn file, whose properties come first: a counter that was used once is not used again."""
    with contextlib.suppress(OSError, ValueError):
        return int(_properties_of(file).get(GENERATION, "0"))
    return 0


def _properties_of(file: Path) -> Mapping[str, str]:
    with file.open(encoding=properties_format.ENCODING) as text:
        content = text.read(MOST_CHARACTERS + 1)
    if len(content) > MOST_CHARACTERS:
        raise ValueError(f"{file} has more than {MOST_CHARACTERS} characters")
    return properties_format.parse(content)


def _replace(folder: Path, name: str, content: bytes) -> None:
    staging = folder / f".{name}{_STAGING}"
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staging.rename(folder / name)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
