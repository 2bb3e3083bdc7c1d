"""Builds every object once, starts and stops them in order: the only place where the parts of the daemon meet."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from torchd_protos import management_pb2, pool, workflow_pb2
from torchd_protos.frames import Call, FrameLimits, Load, Reply
from torchd_protos.management_pb2_grpc import add_ManagementAPIsServiceServicer_to_server
from torchd_protos.workflow_pb2_grpc import (
    add_WorkflowInferenceServiceServicer_to_server,
    add_WorkflowManagementServiceServicer_to_server,
)
from torchd_server import errors, logs, plugins, service_manager
from torchd_server.accelerators.cpu import ThreadBudget, usable_cores
from torchd_server.accelerators.kinds import search
from torchd_server.accelerators.ledger import DeviceLedger
from torchd_server.accelerators.memory import available_bytes
from torchd_server.clock import SystemClock
from torchd_server.dependencies import Dependencies
from torchd_server.download import DownloadLimits, Downloads
from torchd_server.inference import Inference
from torchd_server.management import Management, RegisterModel, Rules
from torchd_server.metrics import Metrics
from torchd_server.model import Machinery
from torchd_server.open_inference import OpenInference
from torchd_server.placement import ThisMachine
from torchd_server.placement.base import WorkerSpec
from torchd_server.plugins import Served
from torchd_server.registry import ModelRegistry
from torchd_server.run_directory import RunDirectory
from torchd_server.settings import ModelSettings, ServerSettings, TorchServeMetrics
from torchd_server.store import ModelStore
from torchd_server.surfaces import grpc_threads, inference_grpc, open_inference_grpc
from torchd_server.surfaces.access import AccessLayer
from torchd_server.surfaces.auth import Access, metrics_access
from torchd_server.surfaces.edge import Edge
from torchd_server.surfaces.grpc_methods import Methods
from torchd_server.surfaces.health_grpc import HealthSurface
from torchd_server.surfaces.inference_grpc import InferenceSurface
from torchd_server.surfaces.management_grpc import ManagementSurface
from torchd_server.surfaces.open_inference_grpc import OpenInferenceSurface
from torchd_server.surfaces.rest.http1 import Handle, HttpServer
from torchd_server.surfaces.rest.http1_reader import HttpLimits, HttpRequest
from torchd_server.surfaces.rest.router import Endpoint
from torchd_server.surfaces.rest.routes import inference_endpoints, management_port_endpoints, metrics_endpoints, port
from torchd_server.surfaces.stream_scope import stream_scope
from torchd_server.surfaces.workflows_grpc import WorkflowInferenceSurface, WorkflowManagementSurface
from torchd_server.torchserve import metrics_config
from torchd_server.torchserve.access_log import AccessLog
from torchd_server.torchserve.metrics_log import MetricsLog
from torchd_server.torchserve.model_config import lenient
from torchd_server.torchserve.recorder import Recorder
from torchd_server.torchserve.snapshot_keeper import SnapshotKeeper, restore
from torchd_server.torchserve.system_metrics import SystemMetrics, gpu_tool
from torchd_server.url_policy import UrlPolicy
from torchd_server.worker import WorkerPlan
from torchd_server.workflow_store import WorkflowStore
from torchd_server.workflows import Workflows

logger = logging.getLogger(__name__)
# Time for answers already decided to reach their clients, when everything else has stopped.
LAST_ANSWERS_SECONDS = 1.0
# What a frame may hold beside its parts: names, headers, their lengths.
FRAME_SLACK_BYTES = 1024 * 1024
# Of this process's descriptors each REST port may use one in so many: the rest is for gRPC, workers and files.
CONNECTION_SHARE = 6
# The collector's, once the server has started: objects more than before, then its younger generations.
GC_THRESHOLDS = (50_000, 20, 20)


# Redirects that a download follows where the posture follows any.
REDIRECTS = 5


class Core:
    """Everything below the surfaces."""

    def __init__(self, settings: ServerSettings, scratch: Path) -> None:
        measured = settings.torchserve_metrics
        config = _metrics_config(measured)
        metrics_log = MetricsLog(logs.write, socket.gethostname()) if settings.log_files.metrics is not None else None
        self.recorder = Recorder(measured.mode, config, measured.auto_detect, socket.gethostname(), metrics_log)
        own = settings.posture.own_metrics or measured.mode != "log"
        self.metrics = Metrics(self.recorder, own, logs.dropped)
        self.registry = ModelRegistry()
        downloads = _downloads(settings)
        self.store = ModelStore(
            settings.model_store,
            scratch,
            downloads,
            _dependencies(settings),
            default_handler=settings.default_handler,
            use_venv=settings.model_defaults.use_venv,
        )
        self._settings = settings
        self.devices = DeviceLedger()
        cores = usable_cores()
        machinery = Machinery(
            placement=ThisMachine(
                settings.environment, settings.posture.worker_environment, settings.hidden_environment
            ),
            threads=ThreadBudget(cores, settings.worker_threads),
            devices=self.devices,
            clock=SystemClock(),
            load=Load(
                decode_input=settings.decode_input,
                max_response_bytes=settings.limits.response_bytes,
                limit_image_pixels=settings.limit_image_pixels,
                service_envelope=settings.service_envelope,
                metrics_json=config.handlers_json(),
                sequence_header_id=settings.sequence_headers.id,
                sequence_header_start=settings.sequence_headers.start,
                sequence_header_end=settings.sequence_headers.end,
            ),
            plan=_planner(settings),
            unload_grace_seconds=settings.limits.unload_grace,
            sequence_headers=settings.sequence_headers,
        )
        self.inference = Inference(self.registry, settings.limits)
        self.open_inference = OpenInference(self.registry, self.inference)
        self.management = Management(
            self.registry,
            self.store,
            machinery,
            self.metrics,
            settings.model_defaults,
            settings.limits,
            settings.model_api,
            lambda model: (
                settings.workers_at_start
                or settings.posture.workers_at_start
                or self.devices.workers_at_start(model)
                or max(1, cores // model.ranks)
            ),
            Rules(
                workers_by_api=settings.workers_at_start or 0,
                unregister_timeout=settings.unregister_timeout,
                model_settings=settings.model_settings,
                read_config=lenient if settings.posture.lenient_model_config else None,
                available_memory=None if settings.workers_at_start else available_bytes,
            ),
        )
        self.workflows = Workflows(
            WorkflowStore(settings.workflow_store or settings.model_store, scratch, downloads),
            self.management,
            self.registry,
            self.inference,
            machinery.clock,
            settings.limits,
            # TorchServe's model API control does not reach workflows (torchserve.md 10.2).
            settings.model_api or settings.posture.name == "torchserve",
        )

    async def find_devices(self) -> None:
        """Searches this machine for devices; drivers' tools may take seconds, and workers need the answer."""
        self.devices.admit(await asyncio.to_thread(search, self._settings.environment, self._settings.gpus))
        for device in self.devices.devices():
            logger.debug("device: %s %d, %s", device.accelerator, device.index, device.name)


def _downloads(settings: ServerSettings) -> Downloads:
    trusting = settings.posture.private_urls
    policy = UrlPolicy(settings.allowed_urls, private_hosts=trusting)
    return Downloads(policy, DownloadLimits(redirects=REDIRECTS if trusting else 0))


def _dependencies(settings: ServerSettings) -> Dependencies | None:
    if not settings.install_dependencies:
        return None
    # TorchServe's archives name packages as they like; the secure posture takes only what it can verify.
    posture = settings.posture
    return Dependencies(
        settings.environment,
        posture.worker_environment,
        settings.hidden_environment,
        only_hashed_wheels=posture.name != "torchserve",
    )


def _metrics_config(settings: TorchServeMetrics) -> metrics_config.MetricsConfig:
    """A file that cannot be used is said, and the server runs with TorchServe's own metrics."""
    try:
        return metrics_config.read(settings.config)
    except metrics_config.MetricsConfigInvalid as error:
        logger.error("%s; TorchServe's own metrics are recorded instead", error)
        return metrics_config.read(None)


def _planner(settings: ServerSettings) -> Callable[[WorkerSpec, Load, ModelSettings], WorkerPlan]:
    limits = FrameLimits(payload=settings.limits.response_bytes + FRAME_SLACK_BYTES)

    def plan(spec: WorkerSpec, load: Load, model: ModelSettings) -> WorkerPlan:
        threads = model.worker_threads or len(spec.cores) // len(spec.ranks)
        return WorkerPlan(spec, load, model.startup_timeout, model.response_timeout, threads, limits)

    return plan


class Daemon:
    """The running server."""

    def __init__(self, settings: ServerSettings, run_directory: RunDirectory) -> None:
        self._settings = settings
        self._run_directory = run_directory
        self._plugins = plugins.load(settings.plugins)
        self._plugins.install()
        self._core = Core(settings, run_directory.scratch)
        self._access_log = AccessLog(logs.write) if settings.log_files.logs is not None else None
        self._system_metrics: asyncio.Task[None] | None = None
        self._edge = Edge(settings, run_directory, self._core.metrics, self._plugins.guard(settings))
        inference = [inference_grpc.SERVICE]
        inference += open_inference_grpc.NAMES if settings.open_inference else ()
        inference.append(workflow_pb2.DESCRIPTOR.services_by_name["WorkflowInferenceService"].full_name)
        management = [
            management_pb2.DESCRIPTOR.services_by_name["ManagementAPIsService"].full_name,
            workflow_pb2.DESCRIPTOR.services_by_name["WorkflowManagementService"].full_name,
        ]
        self._health = HealthSurface(self._core.registry, [*inference, *management])
        to_infer = self._methods("grpc_inference", inference, Access.INFERENCE)
        to_manage = self._methods("grpc_management", management, Access.MANAGEMENT)
        inference_grpc.add_to_server(InferenceSurface(self._core.inference, settings.sequence_headers), to_infer)
        add_ManagementAPIsServiceServicer_to_server(ManagementSurface(self._core.management), to_manage)
        if settings.open_inference:
            open_inference_grpc.add_to_server(OpenInferenceSurface(self._core.open_inference), to_infer)
        workflows = self._core.workflows
        add_WorkflowInferenceServiceServicer_to_server(WorkflowInferenceSurface(workflows), to_infer)
        add_WorkflowManagementServiceServicer_to_server(WorkflowManagementSurface(workflows), to_manage)
        self._grpc_inference = self._grpc_server(to_infer)
        self._grpc_management = self._grpc_server(to_manage)
        self._rest = self._rest_servers()
        self._snapshots: SnapshotKeeper | None = None
        if settings.snapshots is not None:
            self._snapshots = SnapshotKeeper(settings.snapshots, settings.properties, self._core.management)

    def _rest_servers(self) -> dict[tuple[str, ...], HttpServer]:
        """The server of each address, by the names of the APIs it answers: several where they have one address."""
        core, settings = self._core, self._settings
        apis: dict[str, list[Endpoint]] = {
            "inference": inference_endpoints(
                core.inference, core.open_inference, core.workflows, settings.open_inference
            ),
            "management": management_port_endpoints(
                core.management, core.open_inference, core.workflows, self._edge.renewal
            ),
        }
        if settings.listeners.metrics_enabled:
            apis["metrics"] = metrics_endpoints(core.metrics, metrics_access(settings))
        served = Served(core.inference, core.management)
        for name, added in self._plugins.endpoints_of(served).items():
            if name in apis:
                apis[name] = [*added, *apis[name]]  # a plug-in's endpoint may stand in for ours, as in TorchServe
        bodies = {"management": min(settings.limits.management_bytes, settings.limits.request_bytes)}
        return {
            names: self._http_server(
                names[0],
                port([endpoint for name in names for endpoint in apis[name]], self._edge.guard),
                max(bodies.get(name, settings.limits.request_bytes) for name in names),
            )
            for names in settings.listeners.together(apis)
        }

    async def run(self, ready: Callable[[], None]) -> None:
        """Serves until SIGTERM or SIGINT, then drains; `ready` is called once everything listens."""
        stop = asyncio.Event()
        at_once = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: (at_once if stop.is_set() else stop).set())
        loop.add_signal_handler(signal.SIGHUP, self._edge.reload)
        try:
            await self._start()
            _settle_memory()
            ready()
            service_manager.notify(self._settings.environment, service_manager.READY)
            await stop.wait()
            service_manager.notify(self._settings.environment, service_manager.STOPPING)
            logger.info("draining: accepted requests have %g s to finish", self._settings.limits.drain_grace)
        finally:
            await self._stop(at_once)
        logger.info("stopped")

    async def _start(self) -> None:
        """In order: the devices, which whoever registers a model needs; the listeners, so that a taken port fails
        before a worker exists or a key file is replaced; the keys; the models; then the addresses are written down, so
        that whoever reads them finds somebody."""
        await self._core.find_devices()
        bound = {}
        for name, server in (("grpc_inference", self._grpc_inference), ("grpc_management", self._grpc_management)):
            bound[name] = self._edge.bind_grpc(server, name)
            await server.start()
        grpc_threads.yield_to_the_loop()
        for names, rest in self._rest.items():
            bound |= dict.fromkeys(names, await self._edge.bind_rest(rest, names[0]))
        self._edge.open()
        self._measure_system()
        await self._load_models()
        if self._snapshots is not None:
            await self._snapshots.start()
        self._edge.announce(bound)
        for name, address in bound.items():
            logger.info("%-16s %s", name.replace("_", " "), address)

    def _measure_system(self) -> None:
        measured = self._settings.torchserve_metrics
        if measured.system:
            tool = gpu_tool(self._settings.environment.get("PATH"))
            system = SystemMetrics(self._core.recorder.system, measured.interval_seconds, tool)
            self._system_metrics = asyncio.create_task(system.run())

    async def _load_models(self) -> None:
        """One model that cannot be registered does not stop the others."""
        await self._core.store.clear()
        await self._core.workflows.start()
        if self._settings.snapshot is not None:
            await restore(self._settings.snapshot, self._core.management)
            return
        entries = self._settings.models
        if any(entry.lower() == "all" for entry in entries):
            entries = tuple(self._core.store.names())
        for entry in entries:
            try:
                await self._core.management.register_at_start(entry)
            except errors.TorchdError as error:
                logger.error("model %s of the command line was not registered: %s", entry, error)
            except Exception:
                logger.exception("model %s of the command line was not registered", entry)

    async def _stop(self, at_once: asyncio.Event) -> None:
        """In order: say so (readiness), refuse new work, let accepted work finish, end what is left with a typed error,
        end the workers, let the last answers out, close, give the run directory back. Listeners stay open until the end
        so that new callers get a reason and not a refused connection."""
        if self._system_metrics is not None:
            self._system_metrics.cancel()
        self._health.drain()
        self._core.inference.drain()
        end = time.monotonic() + self._settings.limits.drain_grace
        # Workflows first: what they have begun still asks their models.
        await _unless_hurried(self._core.workflows.drain(self._settings.limits.drain_grace), at_once)
        await _unless_hurried(self._core.management.drain(max(0.0, end - time.monotonic())), at_once)
        await self._core.management.drain(0.0)
        await asyncio.gather(
            self._core.management.stop(),
            # Readers who are still at their answers have the rest of the grace.
            _unless_hurried(self._close(max(LAST_ANSWERS_SECONDS, end - time.monotonic())), at_once),
        )
        await self._core.workflows.stop()
        await self._close(0.0)
        if self._snapshots is not None:
            await self._snapshots.stop()
        self._edge.close()
        self._run_directory.leave()

    async def _close(self, grace_seconds: float) -> None:
        await asyncio.gather(
            self._grpc_inference.stop(grace_seconds),
            self._grpc_management.stop(grace_seconds),
            *(rest.drain(grace_seconds) for rest in self._rest.values()),
        )

    def _methods(self, name: str, services: Sequence[str], access: Access) -> Methods:
        """What a gRPC port answers beside the services that are added to it."""
        told = [] if self._access_log is None else [AccessLayer(self._access_log.grpc)]
        methods = Methods([stream_scope, *told], self._edge.door(access))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, methods)  # type: ignore[arg-type] # stands in for it
        names = [*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        if self._settings.posture.reflection and getattr(self._settings.listeners, name).is_loopback:
            for module in (health_pb2, reflection_pb2):
                pool.add(module.DESCRIPTOR)
            pool.POOL.AddSerializedFile(open_inference_grpc.torchserves_file())
            reflected = reflection.aio.ReflectionServicer([*names, reflection.SERVICE_NAME], pool=pool.POOL)
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflected, methods)  # type: ignore[no-untyped-call]
        return methods

    def _grpc_server(self, methods: Methods) -> grpc.aio.Server:
        limits = self._settings.limits
        return grpc.aio.server(
            handlers=[methods],
            options=[
                ("grpc.so_reuseport", 0),  # else a second daemon would silently share the port
                ("grpc.max_concurrent_streams", limits.streams_per_connection),
                ("grpc.max_receive_message_length", limits.request_bytes),
                ("grpc.max_send_message_length", limits.response_bytes + FRAME_SLACK_BYTES),
                ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
                ("grpc.server_handshake_timeout_ms", 10_000),
                *_connection_ages(self._settings),
            ],
        )

    def _http_server(self, name: str, handle: Handle, body_bytes: int) -> HttpServer:
        limits = self._settings.limits
        gate = self._edge.gate(name, handle)
        return HttpServer(
            gate.handle,
            gate.refuse,
            HttpLimits(
                body_bytes=body_bytes,
                connections=min(limits.connections, _descriptors() // CONNECTION_SHARE),
            ),
            headers=gate.headers,
            answered=self._http_answered,
        )

    def _http_answered(self, request: HttpRequest, status: int, seconds: float) -> None:
        self._core.recorder.http_answered(status)
        if self._access_log is not None:
            head = request.head
            self._access_log.http(request.peer, head.method, head.target, head.version, status, seconds)


def _connection_ages(settings: ServerSettings) -> list[tuple[str, int]]:
    ages = {
        "grpc.max_connection_age_ms": settings.grpc_connection_age,
        "grpc.max_connection_age_grace_ms": settings.grpc_connection_grace,
    }
    # gRPC counts in an int of C.
    return [(name, min(int(seconds * 1000), 2**31 - 1)) for name, seconds in ages.items() if seconds is not None]


async def _unless_hurried(ending: Coroutine[Any, Any, None], at_once: asyncio.Event) -> None:
    """Waits for the end of something, or for the second signal, which gives it up."""
    tasks = [asyncio.ensure_future(ending), asyncio.ensure_future(at_once.wait())]
    await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    if not tasks[0].cancelled() and (error := tasks[0].exception()) is not None:
        logger.error("stopping went wrong and goes on", exc_info=error)


def _settle_memory() -> None:
    """What there is by now stays: the collector need not walk through it for each few hundred requests.

    A request leaves no cycles behind, so it may come seldom.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _descriptors() -> int:
    """Descriptors this process may open, after raising its limit to what it is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return allowed if allowed != resource.RLIM_INFINITY else 1 << 20


async def serve(settings: ServerSettings, ready: Callable[[], None]) -> None:
    """Runs the daemon until it is told to stop."""
    run_directory = RunDirectory(settings.run_dir)
    await Daemon(settings, run_directory).run(ready)


async def run_once(settings: ServerSettings, archive: str, call: Call) -> Reply:
    """One request through a real worker, without a daemon: nothing listens."""
    with tempfile.TemporaryDirectory(prefix="torchd-run-") as scratch:
        core = Core(settings, Path(scratch))
        await core.find_devices()
        try:
            change = await core.management.register(RegisterModel(archive, initial_workers=1))
            return await core.inference.predict(
                Call(change.model, change.version, call.request_id, call.headers, call.parts, call.timeout_ms)
            )
        finally:
            await core.management.stop()
