"""Builds every object once, starts and stops them in order: the only place where the parts of the daemon meet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from torchd_protos import inference_pb2, management_pb2, pool
from torchd_protos.frames import Call, FrameLimits, Load, Reply
from torchd_protos.inference_pb2_grpc import add_InferenceAPIsServiceServicer_to_server
from torchd_protos.management_pb2_grpc import add_ManagementAPIsServiceServicer_to_server
from torchd_server import errors
from torchd_server.accelerators.cpu import ThreadBudget, usable_cores
from torchd_server.accelerators.cuda import visible_gpus
from torchd_server.accelerators.ledger import DeviceLedger
from torchd_server.clock import SystemClock
from torchd_server.inference import Inference
from torchd_server.management import Management, RegisterModel
from torchd_server.metrics import Metrics
from torchd_server.model import Machinery
from torchd_server.placement.base import WorkerSpec
from torchd_server.placement.local import LocalPlacement
from torchd_server.registry import ModelRegistry
from torchd_server.run_directory import RunDirectory
from torchd_server.settings import Address, ModelSettings, ServerSettings
from torchd_server.store import ModelStore
from torchd_server.surfaces.health_grpc import HealthSurface
from torchd_server.surfaces.inference_grpc import InferenceSurface
from torchd_server.surfaces.management_grpc import ManagementSurface
from torchd_server.surfaces.rest.answers import refusal
from torchd_server.surfaces.rest.http1 import Handle, HttpServer
from torchd_server.surfaces.rest.http1_reader import HttpLimits
from torchd_server.surfaces.rest.routes import inference_port, management_port, metrics_port
from torchd_server.worker import WorkerPlan

logger = logging.getLogger(__name__)
# Time for answers already decided to reach their clients, when everything else has stopped.
LAST_ANSWERS_SECONDS = 1.0
# What a frame may hold beside its parts: names, headers, their lengths.
FRAME_SLACK_BYTES = 1024 * 1024
# Of this process's descriptors each REST port may use one in so many: the rest is for gRPC, workers and files.
CONNECTION_SHARE = 6


class AddressInUse(RuntimeError):
    """Somebody listens there already."""


class Core:
    """Everything below the surfaces."""

    def __init__(self, settings: ServerSettings, scratch: Path) -> None:
        self.metrics = Metrics()
        self.registry = ModelRegistry()
        self.store = ModelStore(settings.model_store, scratch)
        gpus = visible_gpus(settings.environment)
        cores = usable_cores()
        machinery = Machinery(
            placement=LocalPlacement(settings.environment, settings.posture.worker_environment),
            threads=ThreadBudget(cores, settings.worker_threads),
            devices=DeviceLedger(gpus),
            clock=SystemClock(),
            load=Load(
                decode_input=settings.decode_input,
                max_response_bytes=settings.limits.response_bytes,
                limit_image_pixels=settings.limit_image_pixels,
                service_envelope=settings.service_envelope,
                sequence_header_id=settings.sequence_headers.id,
                sequence_header_start=settings.sequence_headers.start,
                sequence_header_end=settings.sequence_headers.end,
            ),
            plan=_planner(settings),
            unload_grace_seconds=settings.limits.unload_grace,
            sequence_headers=settings.sequence_headers,
        )
        self.inference = Inference(self.registry, settings.limits)
        self.management = Management(
            self.registry,
            self.store,
            machinery,
            self.metrics,
            settings.model_defaults,
            settings.limits,
            settings.model_api,
            lambda: settings.workers_at_start or settings.posture.workers_at_start or len(gpus) or cores,
        )


def _planner(settings: ServerSettings) -> Callable[[WorkerSpec, Load, ModelSettings], WorkerPlan]:
    limits = FrameLimits(payload=settings.limits.response_bytes + FRAME_SLACK_BYTES)

    def plan(spec: WorkerSpec, load: Load, model: ModelSettings) -> WorkerPlan:
        threads = model.worker_threads
        return WorkerPlan(spec, load, model.startup_timeout, model.response_timeout, threads, limits)

    return plan


class Daemon:
    """The running server."""

    def __init__(self, settings: ServerSettings, run_directory: RunDirectory) -> None:
        self._settings = settings
        self._run_directory = run_directory
        self._core = Core(settings, run_directory.scratch)
        names = {
            "inference": inference_pb2.DESCRIPTOR.services_by_name["InferenceAPIsService"].full_name,
            "management": management_pb2.DESCRIPTOR.services_by_name["ManagementAPIsService"].full_name,
        }
        self._health = HealthSurface(self._core.registry, names.values())
        self._grpc_inference = self._grpc_server(names["inference"])
        self._grpc_management = self._grpc_server(names["management"])
        surface = InferenceSurface(self._core.inference, settings.sequence_headers)
        add_InferenceAPIsServiceServicer_to_server(surface, self._grpc_inference)
        add_ManagementAPIsServiceServicer_to_server(ManagementSurface(self._core.management), self._grpc_management)
        self._rest = {
            "inference": self._http_server(inference_port(self._core.inference)),
            "management": self._http_server(management_port(self._core.management), settings.limits.management_bytes),
        }
        if settings.listeners.metrics_enabled:
            self._rest["metrics"] = self._http_server(metrics_port(self._core.metrics))

    async def run(self, ready: Callable[[], None]) -> None:
        """Serves until SIGTERM or SIGINT, then drains; `ready` is called once everything listens."""
        stop = asyncio.Event()
        at_once = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: (at_once if stop.is_set() else stop).set())
        try:
            await self._start()
            ready()
            await stop.wait()
            logger.info("draining: accepted requests have %g s to finish", self._settings.limits.drain_grace)
        finally:
            await self._stop(at_once)
        logger.info("stopped")

    async def _start(self) -> None:
        """In order: listeners first, so that a taken port fails before a worker exists; then the models; then the
        addresses are written down, so that whoever reads them finds somebody."""
        bound = {}
        for name, server in (("grpc_inference", self._grpc_inference), ("grpc_management", self._grpc_management)):
            bound[name] = str(self._bind_grpc(server, name, getattr(self._settings.listeners, name)))
            await server.start()
        for name, rest in self._rest.items():
            bound[name] = f"http://{await self._bind_rest(rest, name, getattr(self._settings.listeners, name))}"
        await self._load_models()
        self._run_directory.announce(bound)
        for name, address in bound.items():
            logger.info("%-16s %s", name.replace("_", " "), address)

    async def _load_models(self) -> None:
        """One model that cannot be registered does not stop the others."""
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
        self._health.drain()
        self._core.inference.drain()
        end = time.monotonic() + self._settings.limits.drain_grace
        await _unless_hurried(self._core.management.drain(self._settings.limits.drain_grace), at_once)
        await self._core.management.drain(0.0)
        await asyncio.gather(
            self._core.management.stop(),
            # Readers who are still at their answers have the rest of the grace.
            _unless_hurried(self._close(max(LAST_ANSWERS_SECONDS, end - time.monotonic())), at_once),
        )
        await self._close(0.0)
        self._run_directory.leave()

    async def _close(self, grace_seconds: float) -> None:
        await asyncio.gather(
            self._grpc_inference.stop(grace_seconds),
            self._grpc_management.stop(grace_seconds),
            *(rest.drain(grace_seconds) for rest in self._rest.values()),
        )

    def _grpc_server(self, service: str) -> grpc.aio.Server:
        limits = self._settings.limits
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),  # else a second daemon would silently share the port
                ("grpc.max_concurrent_streams", limits.streams_per_connection),
                ("grpc.max_receive_message_length", limits.request_bytes),
                ("grpc.max_send_message_length", limits.response_bytes + FRAME_SLACK_BYTES),
                ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
                ("grpc.server_handshake_timeout_ms", 10_000),
            ]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [service, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        if self._settings.posture.reflection:
            for module in (health_pb2, reflection_pb2):
                pool.add(module.DESCRIPTOR)
            reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server, pool.POOL)
        return server

    def _http_server(self, handle: Handle, body_bytes: int | None = None) -> HttpServer:
        limits = self._settings.limits
        return HttpServer(
            handle,
            refusal,
            HttpLimits(
                body_bytes=limits.request_bytes if body_bytes is None else body_bytes,
                connections=min(limits.connections, _descriptors() // CONNECTION_SHARE),
            ),
        )

    @staticmethod
    def _bind_grpc(server: grpc.aio.Server, name: str, address: Address) -> Address:
        # Asked for first with a plain socket: gRPC would print its own account of a taken port.
        try:
            with socket.create_server((address.host, address.port), family=_family(address)):
                pass
            return Address(address.host, server.add_insecure_port(str(address)))
        except (OSError, RuntimeError) as error:
            raise _in_use(name, address) from error

    @staticmethod
    async def _bind_rest(server: HttpServer, name: str, address: Address) -> Address:
        try:
            return Address(address.host, await server.start(address.host, address.port))
        except OSError as error:
            raise _in_use(name, address) from error


async def _unless_hurried(ending: Coroutine[Any, Any, None], at_once: asyncio.Event) -> None:
    """Waits for the end of something, or for the second signal, which gives it up."""
    tasks = [asyncio.ensure_future(ending), asyncio.ensure_future(at_once.wait())]
    await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    if not tasks[0].cancelled() and (error := tasks[0].exception()) is not None:
        logger.error("stopping went wrong and goes on", exc_info=error)


def _descriptors() -> int:
    """Descriptors this process may open, after raising its limit to what it is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return allowed if allowed != resource.RLIM_INFINITY else 1 << 20


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address.host else socket.AF_INET


def _in_use(name: str, address: Address) -> AddressInUse:
    flag = f"--{name.replace('_', '-')}-port"
    return AddressInUse(
        f"cannot listen on {address}: another program does; stop it, or choose another port "
        f"({flag} of torchd serve, or the address in config.properties)"
    )


async def serve(settings: ServerSettings, ready: Callable[[], None]) -> None:
    """Runs the daemon until it is told to stop."""
    run_directory = RunDirectory(settings.run_dir)
    await Daemon(settings, run_directory).run(ready)


async def run_once(settings: ServerSettings, archive: str, call: Call) -> Reply:
    """One request through a real worker, without a daemon: nothing listens."""
    with tempfile.TemporaryDirectory(prefix="torchd-run-") as scratch:
        core = Core(settings, Path(scratch))
        try:
            change = await core.management.register(RegisterModel(archive, initial_workers=1))
            return await core.inference.predict(
                Call(change.model, change.version, call.request_id, call.headers, call.parts, call.timeout_ms)
            )
        finally:
            await core.management.stop()
