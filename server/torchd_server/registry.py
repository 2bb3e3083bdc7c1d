"""Which models there are, in which versions, and which version is the default. The only one who knows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from torchd_server import errors
from torchd_server.model import ModelState, ModelVersion


class _Model:
    """One name: its versions in the order they came, and its default."""

    def __init__(self) -> None:
        self.versions: dict[str, ModelVersion] = {}
        self.default = ""


class ModelRegistry:
    """The registered models."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self._watchers: set[asyncio.Event] = set()

    def __iter__(self) -> Iterator[ModelVersion]:
        """Every version of every model."""
        for model in list(self._models.values()):
            yield from list(model.versions.values())

    def names(self) -> list[str]:
        """The models, in order of their names."""
        return sorted(self._models)

    def get(self, name: str, version: str = "") -> ModelVersion:
        """The version asked for, or the default; raises ModelNotFound or VersionNotFound."""
        model = self._models.get(name)
        if model is None:
            raise errors.ModelNotFound(name, self._models)
        found = model.versions.get(version or model.default)
        if found is None:
            raise errors.VersionNotFound(name, version, model.versions)
        return found

    def versions(self, name: str) -> list[ModelVersion]:
        """Every version of one model; raises ModelNotFound."""
        if name not in self._models:
            raise errors.ModelNotFound(name, self._models)
        return list(self._models[name].versions.values())

    def is_default(self, model: ModelVersion) -> bool:
        """Whether requests that name no version go to it."""
        found = self._models.get(model.name)
        return found is not None and found.versions.get(found.default) is model

    def holds(self, model: ModelVersion) -> bool:
        """Whether this very version is registered."""
        found = self._models.get(model.name)
        return found is not None and found.versions.get(model.version) is model

    def check_free(self, name: str, version: str) -> None:
        """Raises ModelExists if this version is registered."""
        if name in self._models and version in self._models[name].versions:
            raise errors.ModelExists(name, version)

    def add(self, model: ModelVersion) -> None:
        """Registers a version; the first of its name is the default."""
        self.check_free(model.name, model.version)
        entry = self._models.setdefault(model.name, _Model())
        entry.versions[model.version] = model
        entry.default = entry.default or model.version
        self.changed()

    def set_default(self, name: str, version: str) -> None:
        """Makes a registered version the default."""
        known = [model.version for model in self.versions(name)]
        if version not in known:
            raise errors.DefaultVersionNotFound(name, version, known)
        self._models[name].default = version
        self.changed()

    def check_removable(self, model: ModelVersion) -> None:
        """Raises DefaultVersionInUse if it is the default and others stay."""
        if self.is_default(model) and len(self._models[model.name].versions) > 1:
            raise errors.DefaultVersionInUse(model.name)

    def remove(self, model: ModelVersion) -> None:
        """Takes a version out; from now on requests for it find nothing."""
        self.check_removable(model)
        entry = self._models[model.name]
        del entry.versions[model.version]
        if not entry.versions:
            del self._models[model.name]
        self.changed()

    def is_healthy(self) -> bool:
        """Whether every default version that wants workers has them, as TorchServe's ping asks; true without models."""
        return all(model.ready_workers >= min(1, model.wanted_workers) for model in self if self.is_default(model))

    def is_serving(self, name: str, version: str = "") -> bool | None:
        """Whether this version can answer now; None if there is no such version."""
        try:
            return self.get(name, version).state is ModelState.READY
        except errors.NotFound:
            return None

    def changed(self) -> None:
        """Something about a model changed: wakes everyone who watches."""
        for watcher in self._watchers:
            watcher.set()

    def watch(self) -> Watch:
        """Tells of every change from now on."""
        return Watch(self._watchers)


class Watch:
    """Waits for changes; a context manager, so that nobody watches for ever."""

    def __init__(self, watchers: set[asyncio.Event]) -> None:
        self._watchers = watchers
        self._event = asyncio.Event()

    def __enter__(self) -> Watch:
        self._watchers.add(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        self._watchers.discard(self._event)

    async def change(self) -> None:
        """Returns at the next change; at once if there was one since the last call."""
        await self._event.wait()
        self._event.clear()
