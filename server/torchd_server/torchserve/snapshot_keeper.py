"""Keeps a snapshot of the registered models up to date while the server runs, and restores one when it starts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from torchd_server import errors
from torchd_server.management import Management, RegisterModel
from torchd_server.torchserve import snapshot

logger = logging.getLogger(__name__)


class SnapshotKeeper:
    """Writes in a thread, one snapshot after the other; of changes that come meanwhile the last state is written."""

    def __init__(
        self,
        folder: Path,
        properties: Mapping[str, str],
        management: Management,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._folder = folder
        self._properties = properties
        self._management = management
        self._now = now
        self._is_behind = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Writes the first one; from now on every change is followed."""
        await self._write("startup")
        self._management.on_change = self._changed

    async def stop(self) -> None:
        """Writes the last one."""
        self._management.on_change = lambda: None
        if self._task is not None:
            await self._task
        await self._write("shutdown")

    def _changed(self) -> None:
        self._is_behind = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._catch_up(), name="write snapshots")

    async def _catch_up(self) -> None:
        while self._is_behind:
            self._is_behind = False
            await self._write("snapshot")

    async def _write(self, kind: str) -> None:
        models = self._management.registered()
        try:
            await asyncio.to_thread(snapshot.write, self._folder, kind, self._properties, models, self._now())
        except OSError as error:
            logger.error("no snapshot of the registered models could be written to %s: %s", self._folder, error)


async def restore(document: Mapping[str, Any], management: Management) -> None:
    """Registers the models of a snapshot; one that cannot be registered does not stop the others (D10)."""
    for name, versions in document.get("models", {}).items():
        for version, state in versions.items():
            try:
                await _restore(name, version, state, management)
            except errors.TorchdError as error:
                logger.error("model %s version %s of the snapshot was not registered: %s", name, version, error)
            except Exception:
                logger.exception("model %s version %s of the snapshot was not registered", name, version)


async def _restore(name: str, version: str, state: Mapping[str, Any], management: Management) -> None:
    least = _number(state, "minWorkers", 0)
    call = RegisterModel(
        state["marName"],
        name,
        handler=state.get("handler"),
        batch_size=_number(state, "batchSize", 1),
        max_batch_delay_ms=_number(state, "maxBatchDelay", 0),
        response_timeout=_number(state, "responseTimeout", 1),
        startup_timeout=_number(state, "startupTimeout", 1),
        min_workers=least,
        max_workers=None if least is None else max(least, _number(state, "maxWorkers", 0) or 0),
    )
    is_default = state.get("defaultVersion") is True
    try:
        await management.restore(call, version, is_default)
    except errors.ArchiveNotFound:
        if not isinstance(url := state.get("modelUrl"), str):
            raise
        await management.restore(replace(call, url=url), version, is_default)


def _number(state: Mapping[str, Any], key: str, least: int) -> int | None:
    """A number of the snapshot; None, the default, for one that is missing or that TorchServe's own faults left."""
    value = state.get(key)
    return value if type(value) is int and value >= least else None
