"""The use cases of management: register, scale, describe, list, set default, unregister. Surfaces only translate."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torchd_protos.frames import Call, Header
from torchd_server import errors, parallelism
from torchd_server.devices import Inventory, inventory
from torchd_server.metrics import Metrics
from torchd_server.model import Machinery, ModelState, ModelVersion, VersionStatus
from torchd_server.registry import ModelRegistry
from torchd_server.settings import (
    MODEL_CONFIG_KEYS,
    TORCHRUN_KEYS,
    Limits,
    ModelSettings,
    RegisteredModel,
    SettingInvalid,
    check_name,
    merge_model_settings,
)
from torchd_server.store import ModelStore, UnpackedModel

logger = logging.getLogger(__name__)
T = TypeVar("T")
MOST_LISTED = 100
LAST_CHANGES_SECONDS = 1.0
# What can change while a model runs: the parameter's name in the API -> the setting's.
RECONFIGURABLE = {
    "batch_size": "batch_size",
    "max_batch_delay": "max_batch_delay_ms",
    "response_timeout": "response_timeout",
    "job_queue_size": "job_queue_size",
    "batch_wait": "batch_wait",
}


@dataclass(frozen=True, slots=True)
class RegisterModel:
    """A register call; None means not given."""

    url: str
    model_name: str | None = None
    handler: str | None = None
    runtime: str | None = None
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None
    initial_workers: int | None = None
    response_timeout: int | None = None
    startup_timeout: int | None = None
    synchronous: bool = True
    at_startup: bool = False
    s3_sse_kms: bool = False
    # Given by a snapshot: they stand above everything.
    min_workers: int | None = None
    max_workers: int | None = None


# A model-config.yaml as it shall be read, and what was wrong with it.
ReadConfig = Callable[[Mapping[str, Any]], tuple[Mapping[str, Any], list[str]]]


@dataclass(frozen=True, slots=True)
class Rules:
    """What this server adds to every registration."""

    # Workers of a model registered through the API, where nothing names a number.
    workers_by_api: int = 0
    # An unregister call takes no longer: requests that are still unanswered then end with an error.
    unregister_timeout: float = math.inf
    # Settings by model and version, under model-config.yaml's names; that file stands above them.
    model_settings: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    # Without it a value that will not do refuses the archive.
    read_config: ReadConfig | None = None
    # With it, a model whose number of workers nobody named gets the first, and the rest if there is memory for them.
    available_memory: Callable[[], int] | None = None


@dataclass(frozen=True, slots=True)
class ModelChange:
    """What a call changed; `done` is false while an asynchronous change goes on."""

    model: str
    version: str
    wanted: int
    ready: int
    done: bool
    version_was_given: bool = True


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """One line of a list."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class ModelPage:
    """One page of a list; `next_token` is None on the last."""

    models: tuple[ModelSummary, ...]
    next_token: int | None


class Management:
    """Changes which models there are. The order of steps keeps every failure all or nothing."""

    def __init__(
        self,
        registry: ModelRegistry,
        store: ModelStore,
        machinery: Machinery,
        metrics: Metrics,
        defaults: ModelSettings,
        limits: Limits,
        api_enabled: bool,
        workers_at_start: Callable[[ModelSettings], int],
        rules: Rules = Rules(),
    ) -> None:
        # Told of every change that shall outlive this process.
        self.on_change: Callable[[], None] = lambda: None
        self._registry = registry
        self._store = store
        self._machinery = machinery
        self._metrics = metrics
        self._defaults = defaults
        self._limits = limits
        self._api_enabled = api_enabled
        self._workers_at_start = workers_at_start
        self._rules = rules
        # Models that have one worker for now, and the number they shall have.
        self._growing: dict[ModelVersion, int] = {}
        self._changes: set[asyncio.Task[Any]] = set()
        self._leaving: set[ModelVersion] = set()
        # Models that are nodes of a workflow come and go with it.
        self._holders: dict[ModelVersion, str] = {}
        self._draining = False

    async def register(self, call: RegisterModel) -> ModelChange:
        """Registers a model through the API; a synchronous call that cannot get its workers leaves nothing behind."""
        self.check_open()
        if not self._api_enabled:
            raise errors.ModelApiDisabled
        return await self.to_the_end(self._register(call))

    async def register_at_start(self, entry: str) -> None:
        """Registers `name=file` or `file` of the command line; its workers load while the server starts.

        The file may be an allowed URL, in which an '=' of its own may stand.
        """
        name, equals, url = entry.partition("=")
        if not equals or "://" in name:
            name, url = "", entry
        call = RegisterModel(url, name or None, synchronous=False, at_startup=True)
        try:
            await self._register(call)
        except errors.ArchiveExists as error:
            # A server that was killed has left what it had downloaded: it must come up again by the same command.
            logger.warning("%s is not fetched: the model store has %s, which is taken", url, error.archive)
            await self._register(replace(call, url=error.archive))

    async def restore(self, call: RegisterModel, version: str, is_default: bool) -> None:
        """Registers a version as a snapshot has it; its workers load while the server starts."""
        change = await self._register(replace(call, synchronous=False))
        if change.version != version:
            logger.warning("the snapshot has version %s of %s, its archive %s", version, change.model, change.version)
        if is_default:
            self._registry.set_default(change.model, change.version)

    def registered(self) -> list[RegisteredModel]:
        """Every registered version, as it shall be after a restart; nodes come and go with their workflows."""
        return [
            RegisteredModel(
                model.name,
                model.version,
                model.unpacked.source,
                self._registry.is_default(model),
                self._wanted(model, model.settings),
            )
            for model in self._registry
            if model not in self._holders
        ]

    async def register_node(
        self, workflow: str, call: RegisterModel, function: UnpackedModel | None = None
    ) -> ModelChange:
        """Registers a node of a workflow: the model of its archive, or a function of the workflow's own folder."""
        return await self._register(call, function, workflow)

    async def unregister_node(self, name: str, version: str) -> None:
        """Removes a node with its workflow."""
        model = self._registry.get(name, version)
        self._registry.remove(model)
        await self._end(model, self._limits.unload_grace)

    async def _register(
        self, call: RegisterModel, unpacked: UnpackedModel | None = None, holder: str | None = None
    ) -> ModelChange:
        if unpacked is None:
            unpacked = await self._store.fetch(call.url, call.model_name or "", call.s3_sse_kms)
        try:
            self.check_open()  # the server may have begun to stop while the archive was unpacked
            model = self._add(call, unpacked, holder)
        except BaseException:
            await self._store.drop(unpacked)
            raise
        logger.info("registered", extra={"model": model.name, "version": model.version})
        if not call.synchronous:
            self.on_change()
            return _change(model, done=not model.wanted_workers)
        failure = await model.settle()
        self.check_open()
        if not self._registry.holds(model):
            raise errors.ModelNotFound(model.name, self._registry.names())
        if failure is not None:
            logger.error("registration taken back", extra={"model": model.name, "version": model.version})
            await self._take_back(model)
            raise _not_loaded(model, failure)
        self.on_change()
        return _change(model)

    def _add(self, call: RegisterModel, unpacked: UnpackedModel, holder: str | None) -> ModelVersion:
        if not call.model_name and not unpacked.model_name:
            raise errors.ArchiveInvalid(
                f"Model name is not defined. Archive '{call.url}' has no manifest that names it: pack it with "
                "torch-model-archiver, "
                "or give model_name and handler"
            )
        try:
            name = check_name("model name", call.model_name or unpacked.model_name)
            version = check_name("model version", unpacked.version)
            settings, is_guess = self._settings(call, unpacked, name, version)
        except SettingInvalid as error:
            raise _blamed(error, call, unpacked) from error
        self._registry.check_free(name, version)  # before anything of the new one exists
        self._check_not_held(name)
        _warn_of_typos(name, unpacked)
        for warning in parallelism.check(settings, unpacked.config):
            logger.warning("model-config.yaml of %s: %s", name, warning)
        if not settings.handler and not unpacked.handler:
            raise errors.ArchiveInvalid(f"archive '{call.url}' names no handler; give one with the register call")
        self._check_room(name)
        model = ModelVersion(
            name,
            version,
            unpacked,
            settings,
            self._machinery,
            self._metrics.of_model(name, version),
            self._registry.changed,
            call.at_startup or self._was_loaded_at_startup(name),
        )
        self._registry.add(model)
        if holder is not None:
            self._holders[model] = holder
        try:
            self._start(model, settings, is_guess)
        except errors.NotEnoughDevices:
            self._registry.remove(model)
            self._holders.pop(model, None)
            model.forget()
            raise
        return model

    def _start(self, model: ModelVersion, settings: ModelSettings, is_guess: bool) -> None:
        if is_guess and settings.min_workers > 1 and self._rules.available_memory is not None:
            model.scale(1, settings.max_workers)
            self._growing[model] = settings.min_workers
            self._change(self._grow(model, settings.min_workers, self._rules.available_memory))
        else:
            model.scale(settings.min_workers, settings.max_workers)

    def _was_loaded_at_startup(self, name: str) -> bool:
        # TorchServe asks by name: later versions of a model of the start are called so too.
        return any(model.loaded_at_startup for model in self._registry if model.name == name)

    def _settings(
        self, call: RegisterModel, unpacked: UnpackedModel, name: str, version: str
    ) -> tuple[ModelSettings, bool]:
        """Server defaults < `models` of config.properties < model-config.yaml < the call; but a number of workers in
        the file stands above the call's, as in TorchServe. True if nobody gave a number and it is the server's guess.
        """
        given = {
            "handler": call.handler,
            "runtime": call.runtime,
            "batch_size": call.batch_size,
            "max_batch_delay_ms": call.max_batch_delay_ms,
            "response_timeout": call.response_timeout,
            "startup_timeout": call.startup_timeout,
            "min_workers": call.min_workers,
            "max_workers": call.max_workers,
        }
        config = {**self._of_server(call, name, version), **self._read_config(name, unpacked.config)}
        settings = merge_model_settings(self._defaults, config, given)
        if settings.min_workers or call.min_workers is not None:
            return settings, False
        workers, is_guess = call.initial_workers, False
        if workers is None and call.at_startup:
            workers, is_guess = self._workers_at_start(settings), True
        workers = self._rules.workers_by_api if workers is None else workers
        return replace(settings, min_workers=workers, max_workers=max(workers, settings.max_workers)), is_guess

    def _of_server(self, call: RegisterModel, name: str, version: str) -> dict[str, Any]:
        """The entry of `models` in config.properties; its numbers of workers hold for models loaded at start only."""
        found = dict(self._rules.model_settings.get(name, {}).get(version, {}))
        if not call.at_startup:
            found = {key: value for key, value in found.items() if key not in ("minWorkers", "maxWorkers")}
        return found

    def _read_config(self, name: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._rules.read_config is None:
            return config
        read, warnings = self._rules.read_config(config)
        for warning in warnings:
            logger.warning("model-config.yaml of %s: %s", name, warning)
        return read

    async def _grow(self, model: ModelVersion, wanted: int, available: Callable[[], int]) -> None:
        """Once the first worker shows what one takes, starts as many more as there is memory for."""
        while await model.settle() is not None:
            if model.state is ModelState.FAILED:
                return
        memory = max((worker.memory_bytes for worker in model.describe(False).workers), default=0)
        if self._draining or model not in self._growing:
            return  # somebody else has scaled or removed it meanwhile
        room = 1 + available() // memory if memory else wanted
        if room < wanted:
            logger.warning(
                "%d workers instead of %d: one takes %d MiB, and there is no memory for more",
                *(room, wanted, memory >> 20),
                extra={"model": model.name, "version": model.version},
            )
        fits = model.fits(min(wanted, room))
        if fits < min(wanted, room):
            logger.warning(
                "%d workers instead of %d: others have the devices of more",
                *(fits, wanted),
                extra={"model": model.name, "version": model.version},
            )
        self._growing.pop(model, None)
        model.scale(fits, model.settings.max_workers)
        self.on_change()

    def _check_not_held(self, name: str) -> None:
        """A node's name is its workflow's: another version beside it would outlive it."""
        for model, workflow in self._holders.items():
            if model.name == name:
                raise errors.NodeInUse(name, workflow)

    def _check_room(self, name: str) -> None:
        names = self._registry.names()
        if name not in names and len(names) >= self._limits.models:
            raise errors.Overloaded(f"{len(names)} models are registered; the limit is {self._limits.models}")
        if name in names and len(self._registry.versions(name)) >= self._limits.versions_per_model:
            raise errors.Overloaded(
                f"model '{name}' has {self._limits.versions_per_model} versions, which is the limit"
            )

    async def _take_back(self, model: ModelVersion) -> None:
        # Others may have made it the default, scaled or removed it meanwhile: then it is theirs.
        if not self._registry.holds(model):
            return
        try:
            self._registry.remove(model)
        except errors.DefaultVersionInUse:
            return
        await self._end(model, 0.0)

    async def scale(
        self, name: str, version: str, min_workers: int | None, max_workers: int | None, synchronous: bool
    ) -> ModelChange:
        """Changes the number of workers; surplus ones finish what they run."""
        self.check_open()
        least = 1 if min_workers is None else min_workers
        most = max(least, 0) if max_workers is None else max_workers
        if least < 0 or most < 0:
            raise errors.BadRequest(f"min_worker={least}, max_worker={most}: neither may be negative")
        if most < least:
            raise errors.BadRequest("max_worker cannot be less than min_worker.")
        model = self._registry.get(name, version)
        try:
            model.scale(least, most)
        except SettingInvalid as error:
            raise errors.BadRequest(str(error)) from error
        self._growing.pop(model, None)  # what was asked for now holds
        if not synchronous:
            self.on_change()
            return _change(model, done=False, version_was_given=bool(version))
        logger.info("scaled to %d workers", model.wanted_workers, extra={"model": model.name, "version": model.version})
        failure = await model.settle()
        if failure is not None:
            raise _not_loaded(model, failure)
        self.on_change()
        return _change(model, version_was_given=bool(version))

    def reconfigure(self, name: str, version: str, changes: Mapping[str, Any]) -> ModelChange:
        """Changes settings (names of RECONFIGURABLE) of a living version; its workers go on."""
        self.check_open()
        model = self._registry.get(name, version)
        try:
            model.reconfigure(replace(model.settings, **changes))
        except SettingInvalid as error:
            raise errors.BadRequest(str(error)) from error
        told = ", ".join(f"{key}={value}" for key, value in changes.items())
        logger.info("settings changed: %s", told, extra={"model": model.name, "version": model.version})
        self.on_change()
        self._registry.changed()
        self.on_change()
        return _change(model, version_was_given=bool(version))

    async def customized(self, name: str, version: str = "") -> dict[str, Any] | None:
        """What the handler says of itself; {} if that is no JSON object, None if it says nothing."""
        model = self._registry.get(name, version)
        headers = [Header("describe", "True")]
        if model.settings.sequence_batching:  # it is a sequence of its own, which must not keep a place
            headers.append(Header(self._machinery.sequence_headers.end, "true"))
        call = Call(model=name, version=version, request_id=str(uuid.uuid4()), headers=headers, parts=[])
        try:
            replies = await model.submit(call).answer(self._limits.response_bytes)
        except errors.NoWorker as error:
            raise errors.NoWorkerToDescribe(error.model, error.version) from error
        text = b"".join(reply.body for reply in replies)
        try:
            found = json.loads(text) if text else None
        except (ValueError, RecursionError):
            found = {}
        return found if found is None or isinstance(found, dict) else {}

    def describe(self, name: str, version: str = "") -> list[VersionStatus]:
        """One version, the default one, or all of them (`version` "all")."""
        models = self._registry.versions(name) if version == "all" else [self._registry.get(name, version)]
        return [self._describe(model) for model in models]

    def _describe(self, model: ModelVersion) -> VersionStatus:
        status = model.describe(self._registry.is_default(model))
        return replace(status, settings=self._wanted(model, status.settings))

    def _wanted(self, model: ModelVersion, settings: ModelSettings) -> ModelSettings:
        """With the number of workers it shall have, also while it has only the first of them."""
        return replace(settings, min_workers=self._growing.get(model, settings.min_workers))

    def list(self, limit: int, token: int) -> ModelPage:
        """One page of the models by name; a limit outside 1 to 100 means 100."""
        size = limit if 0 < limit <= MOST_LISTED else MOST_LISTED
        first = max(0, token)
        # Functions of workflows have no archive of their own and are not shown, as in TorchServe.
        names = [name for name in self._registry.names() if self._registry.get(name).unpacked.source]
        page = tuple(
            ModelSummary(name, self._registry.get(name).unpacked.source) for name in names[first : first + size]
        )
        return ModelPage(page, first + size if first + size < len(names) else None)

    def devices(self) -> Inventory:
        """The devices of this machine and who holds them, models that are being removed too."""
        return inventory(self._machinery.devices, (*self._registry, *self._leaving))

    def set_default(self, name: str, version: str) -> ModelChange:
        """Makes a version the default."""
        if not version:
            raise errors.BadRequest("Parameter model_version is required.")
        self._registry.set_default(name, version)
        self.on_change()
        return _change(self._registry.get(name, version))

    async def unregister(self, name: str, version: str) -> ModelChange:
        """Removes a version: new requests find nothing at once, accepted ones are answered first."""
        self.check_open()
        if not self._api_enabled:
            raise errors.ModelApiDisabled
        model = self._registry.get(name, version)
        if model in self._holders:
            raise errors.NodeInUse(model.name, self._holders[model])
        self._registry.remove(model)
        await self.to_the_end(self._end(model, min(self._limits.unload_grace, self._rules.unregister_timeout)))
        logger.info("unregistered", extra={"model": model.name, "version": model.version})
        self.on_change()
        return ModelChange(model.name, model.version, 0, 0, True)

    async def drain(self, grace_seconds: float) -> None:
        """Refuses every change and waits until each model has answered what it accepted, at most `grace_seconds`."""
        self._draining = True
        await asyncio.gather(*(model.drain(grace_seconds) for model in (*self._registry, *self._leaving)))

    async def stop(self) -> None:
        """Ends every worker and removes what was unpacked; call `drain` first."""
        models = (*self._registry, *self._leaving)
        await asyncio.gather(*(model.stop(0.0) for model in models))
        await asyncio.gather(*(self._store.drop(model.unpacked) for model in models))
        if self._changes:  # changes end with the workers they wait for; one that still unpacks is given up
            await asyncio.wait(self._changes, timeout=LAST_CHANGES_SECONDS)
        for change in self._changes:
            change.cancel()

    async def to_the_end(self, change: Coroutine[Any, Any, T]) -> T:
        """Runs a change to its end, also when the client who asked for it has gone: half a change helps nobody."""
        task = self._change(change)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # by `stop`, and not because the client has gone
                raise errors.Draining from None
            raise

    def _change(self, change: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return task

    def check_open(self) -> None:
        """Raises Draining once the server has begun to stop."""
        if self._draining:
            raise errors.Draining

    async def _end(self, model: ModelVersion, grace_seconds: float) -> None:
        self._leaving.add(model)
        self._growing.pop(model, None)
        try:
            await model.drain(grace_seconds)
            await model.stop(grace_seconds)
            await self._store.drop(model.unpacked)
        finally:
            self._leaving.discard(model)
            self._holders.pop(model, None)


def _not_loaded(model: ModelVersion, failure: errors.TorchdError) -> errors.LoadFailed:
    cls = type(failure) if isinstance(failure, errors.LoadFailed) else errors.LoadFailed
    message = f"model '{model.name}' version {model.version} cannot be loaded: {failure}"
    return cls(message, getattr(failure, "traceback", ""))


def _blamed(error: SettingInvalid, call: RegisterModel, unpacked: UnpackedModel) -> errors.TorchdError:
    """Whose fault a bad value is: the call's, or that of the archive's model-config.yaml."""
    torchrun = unpacked.config.get("torchrun")
    inner = torchrun if isinstance(torchrun, Mapping) else {}
    given = {f"torchrun.{key}": name for key, name in TORCHRUN_KEYS.items() if inner.get(key) is not None}
    given |= {key: name for key, name in MODEL_CONFIG_KEYS.items() if key in unpacked.config}
    for key, name in given.items():
        if name == error.key and getattr(call, name, None) is None:
            return errors.ArchiveInvalid(
                f"model-config.yaml of '{call.url}': {key}: {error.value!r} will not do; expected {error.expected}"
            )
    if error.key == "runtime":
        return errors.BadRequest(f"Invalid RuntimeType value: {error.value} (expected {error.expected})")
    return errors.BadRequest(str(error))


def _warn_of_typos(name: str, unpacked: UnpackedModel) -> None:
    meant = {key.lower(): key for key in MODEL_CONFIG_KEYS}
    for key in unpacked.config:
        if key not in MODEL_CONFIG_KEYS and key.lower() in meant:
            logger.warning("model-config.yaml of %s: %s is not read; did you mean %s?", name, key, meant[key.lower()])


def _change(model: ModelVersion, done: bool = True, version_was_given: bool = True) -> ModelChange:
    return ModelChange(model.name, model.version, model.wanted_workers, model.ready_workers, done, version_was_given)
