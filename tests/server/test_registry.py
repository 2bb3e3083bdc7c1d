"""Which models there are and which version answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fakes import FakePlacement, ManualClock, echoes, in_loop, machinery, turns

from torchd_server import errors
from torchd_server.metrics import Metrics
from torchd_server.model import ModelVersion
from torchd_server.registry import ModelRegistry
from torchd_server.settings import ModelSettings
from torchd_server.store import UnpackedModel


def version_of(registry: ModelRegistry, name: str, version: str) -> ModelVersion:
    unpacked = UnpackedModel(f"{name}.mar", Path("/nowhere"), name, version, "h.py", "python", {}, "{}", "{}", True)
    parts = machinery(FakePlacement(echoes), ManualClock())
    labels = Metrics().of_model(name, version)
    return ModelVersion(name, version, unpacked, ModelSettings(), parts, labels, registry.changed)


@in_loop
async def test_the_first_version_is_the_default_until_another_is() -> None:
    registry = ModelRegistry()
    first, second = version_of(registry, "m", "1.0"), version_of(registry, "m", "2.0")
    registry.add(first)
    registry.add(second)
    assert registry.get("m") is first
    registry.set_default("m", "2.0")
    assert (registry.get("m"), registry.get("m", "1.0")) == (second, first)
    assert [registry.is_default(model) for model in registry] == [False, True]


@in_loop
async def test_what_is_not_there_is_told_with_what_is() -> None:
    registry = ModelRegistry()
    with pytest.raises(errors.ModelNotFound, match="registered: nothing"):
        registry.get("m")
    registry.add(version_of(registry, "m", "1.0"))
    with pytest.raises(errors.ModelNotFound, match="registered: m"):
        registry.get("n")
    with pytest.raises(errors.VersionNotFound, match=r"no version '3\.0'; it has 1\.0"):
        registry.set_default("m", "3.0")
    with pytest.raises(errors.ModelExists):
        registry.add(version_of(registry, "m", "1.0"))


@in_loop
async def test_the_default_goes_last() -> None:
    """M08."""
    registry = ModelRegistry()
    first, second = version_of(registry, "m", "1.0"), version_of(registry, "m", "2.0")
    for model in (first, second):
        registry.add(model)
    with pytest.raises(errors.DefaultVersionInUse):
        registry.remove(first)
    registry.remove(second)
    registry.remove(first)
    assert registry.names() == []


@in_loop
async def test_health_asks_for_the_workers_that_are_wanted() -> None:
    """P13."""
    registry = ModelRegistry()
    assert registry.is_healthy()
    model = version_of(registry, "m", "1.0")
    registry.add(model)
    assert registry.is_healthy()
    assert (registry.is_serving("m"), registry.is_serving("n")) == (False, None)
    model.scale(1, 1)
    assert not registry.is_healthy()
    await model.settle()
    assert registry.is_healthy()
    assert registry.is_serving("m", "1.0")
    await model.stop(1.0)


@in_loop
async def test_a_watch_wakes_for_each_change_and_misses_none() -> None:
    registry = ModelRegistry()
    with registry.watch() as watch:
        registry.changed()
        await watch.change()  # one that came before it was asked
        waiting = asyncio.ensure_future(watch.change())
        await turns()
        assert not waiting.done()
        registry.changed()
        await waiting
    registry.changed()
