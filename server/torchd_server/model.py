"""One version of a model: its settings, its queue and its workers, and the door requests come in by."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from torchd_protos.frames import Call, Load
from torchd_server import errors
from torchd_server.accelerators.base import Device
from torchd_server.accelerators.cpu import ThreadBudget
from torchd_server.accelerators.ledger import Account, DeviceLedger, Lease
from torchd_server.batching import modes
from torchd_server.clock import Clock
from torchd_server.deadlines import Deadlines
from torchd_server.metrics import ModelMetrics
from torchd_server.placement.base import Placement, WorkerSpec
from torchd_server.pool import WorkerFailure, WorkerPool
from torchd_server.rank import Rank, RankState
from torchd_server.request import Request
from torchd_server.settings import ModelSettings, SequenceHeaders
from torchd_server.store import UnpackedModel
from torchd_server.worker import Worker, WorkerPlan

logger = logging.getLogger(__name__)

_numbers = itertools.count(1)


class ModelState(enum.Enum):
    """Whether a version can answer."""

    IDLE = "idle"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class RankStatus:
    """One process of a worker, and the devices that it sees."""

    rank: int
    pid: int
    state: str
    progress: str
    devices: tuple[Device, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker as an operator sees it. `memory_bytes` is resident memory, `gpu` the index of its first GPU."""

    name: str
    state: str
    started_at: datetime | None
    pid: int
    memory_bytes: int
    gpu: int | None
    threads: int
    running: int
    progress: str
    device_type: str = "cpu"
    devices: tuple[Device, ...] = ()
    ranks: tuple[RankStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One version as an operator sees it."""

    name: str
    version: str
    source: str
    settings: ModelSettings
    state: ModelState
    is_default: bool
    loaded_at_startup: bool
    workers: tuple[WorkerStatus, ...]
    pending: int
    remaining: int
    last_failure: WorkerFailure | None
    # What `optimize:` did, as the workers say it (JSON); empty if nothing was asked for, or none has loaded.
    optimization_json: str = ""

    @property
    def device_type(self) -> str:
        """What its workers run on; what it wishes for while there are none."""
        if not self.workers:
            return self.settings.device_type or "cpu"
        return next((worker.device_type for worker in self.workers if worker.name), "cpu")


@dataclass(frozen=True, slots=True)
class Machinery:
    """What every model version is built from; made once in daemon.py."""

    placement: Placement
    threads: ThreadBudget
    devices: DeviceLedger
    clock: Clock
    # A Load with everything that is the same for all models.
    load: Load
    plan: Callable[[WorkerSpec, Load, ModelSettings], WorkerPlan]
    unload_grace_seconds: float
    sequence_headers: SequenceHeaders = field(default_factory=SequenceHeaders)


class ModelVersion:
    """One registered version."""

    def __init__(
        self,
        name: str,
        version: str,
        unpacked: UnpackedModel,
        settings: ModelSettings,
        machinery: Machinery,
        metrics: ModelMetrics,
        on_change: Callable[[], None],
        loaded_at_startup: bool = False,
    ) -> None:
        self.name = name
        self.version = version
        self.unpacked = unpacked
        self.settings = settings
        self.loaded_at_startup = loaded_at_startup
        self._machinery = machinery
        self._metrics = metrics
        self._on_change = on_change
        self._policy = modes.policy_for(settings, machinery.clock, machinery.sequence_headers, (name, version))
        self._account = Account(machinery.devices, name, version, settings)
        self._pool = WorkerPool(self._make_worker, self._account, machinery.unload_grace_seconds, self._changed)
        self._cost = ""
        self._draining = False
        self._unfinished = Deadlines(machinery.clock)
        self._nothing_left = asyncio.Event()
        metrics.queue_depth = lambda: self._policy.depth

    @property
    def state(self) -> ModelState:
        """Whether it can answer."""
        if self._draining:
            return ModelState.DRAINING
        if self._pool.ready:
            return ModelState.READY
        if self._pool.given_up is not None:
            return ModelState.FAILED
        return ModelState.LOADING if self._pool.wanted else ModelState.IDLE

    @property
    def wanted_workers(self) -> int:
        """Workers that should be there."""
        return self._pool.wanted

    @property
    def ready_workers(self) -> int:
        """Workers that can take a batch."""
        return self._pool.ready

    @property
    def unfinished(self) -> int:
        """Requests accepted and not yet answered."""
        return len(self._unfinished)

    def submit(self, call: Call) -> Request:
        """Accepts a request, or refuses it at once: an Overloaded, a SequenceEnded, NoWorker, ModelFailed, Draining."""
        self._metrics.requested(call.version)
        if self._draining:
            raise errors.Draining(f"model '{self.name}' version {self.version}")
        if self._pool.given_up is not None:
            raise self._failed(self._pool.given_up)
        if not self._pool.wanted:
            raise errors.NoWorker(self.name, self.version, call.version)
        if not self._policy.room:  # before a request exists: a refusal costs nothing
            self._refuse(errors.QueueFull(self.name, self.version, self.settings.job_queue_size, call.version))
        if self.settings.use_job_ticket and not self._policy.tickets:
            self._refuse(errors.NoTicket(self.name, self.version, call.version))
        if self.settings.sequence_batching:
            call = self._admit(call)
        request = Request(
            call,
            next(_numbers),
            self.settings.response_timeout,
            self._machinery.clock,
            self._request_done,
            self.settings.client_timeout_ms / 1000 or math.inf,
        )
        self._unfinished.watch(request)
        self._policy.put(request)
        return request

    def _admit(self, call: Call) -> Call:
        try:
            return self._policy.admit(call)
        except errors.TorchdError as error:
            self._refuse(error)

    def _refuse(self, error: errors.TorchdError) -> NoReturn:
        self._metrics.outcome(type(error).__name__)
        raise error

    def close_sequence(self, sequence: str) -> None:
        """Ends a sequence whose client has left; what runs of it runs to its end."""
        self._policy.close(sequence)

    def scale(self, min_workers: int, max_workers: int) -> None:
        """Starts workers up to the least wanted, or lets go those above the most; NotEnoughDevices changes nothing."""
        settings = replace(self.settings, min_workers=min_workers, max_workers=max_workers)
        wanted = min(max(self._pool.wanted, min_workers), max_workers)
        self._pool.scale(wanted)
        if (most := self._pool.wanted) < wanted:  # no more groups fit on the GPUs
            settings = replace(settings, min_workers=min(min_workers, most), max_workers=most)
        self.settings = settings

    def fits(self, wanted: int) -> int:
        """As many workers of `wanted` as there are devices for, those it has among them."""
        has = self._pool.wanted
        return has + self._account.fits(max(0, wanted - has))

    def forget(self) -> None:
        """It never came to be: nothing of it is left in the metrics."""
        self._metrics.forget()

    def leases(self) -> dict[Lease, WorkerStatus | None]:
        """What its slots hold, with the worker in it; None where that has gone or is still to come."""
        return {
            lease: self._worker_status(worker) if worker is not None else None
            for lease, worker in self._pool.holders().items()
        }

    def reconfigure(self, settings: ModelSettings) -> None:
        """Serves with these settings from now on; workers keep running, and handlers keep the batch size they know."""
        self.settings = settings
        modes.resize(self._policy, settings)
        modes.group_by(self._policy, settings, self._cost, self._machinery.clock)
        for worker in self._pool.workers():
            worker.allow(settings.response_timeout)

    async def settle(self) -> errors.TorchdError | None:
        """Waits until every wanted worker is ready and every surplus one gone (None), or one has failed (its error)."""
        return await self._pool.settle()

    async def drain(self, grace_seconds: float) -> None:
        """Refuses new requests and waits until the accepted ones are answered, at most `grace_seconds`."""
        self._draining = True
        self._on_change()
        if self._pool.ready == 0 and self._pool.given_up is not None:
            self._answer_waiting(errors.Draining(f"model '{self.name}'"))
        if self._unfinished:
            self._nothing_left.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await self._nothing_left.wait()
        for request in self._unfinished:
            request.finish(errors.Draining(f"model '{self.name}'"))

    async def stop(self, grace_seconds: float) -> None:
        """Ends its workers; call `drain` first."""
        self._draining = True
        await self._pool.stop(grace_seconds)
        self._unfinished.close()
        self._metrics.forget()

    def describe(self, is_default: bool) -> VersionStatus:
        """What an operator sees."""
        workers = [self._worker_status(worker) for worker in self._pool.workers()]
        workers += [WorkerStatus("", state, None, 0, 0, None, 0, 0, "") for state in self._absent_workers()]
        return VersionStatus(
            self.name,
            self.version,
            self.unpacked.source,
            self.settings,
            self.state,
            is_default,
            self.loaded_at_startup,
            tuple(workers),
            self._policy.depth,
            self._policy.room,
            self._pool.last_failure,
            next(filter(None, (worker.ranks[0].loaded.optimization_json for worker in self._pool.workers())), ""),
        )

    def _absent_workers(self) -> list[str]:
        """The state of each wanted worker that is not there: it comes again, or the pool has given up."""
        return ["back_off" if self._pool.given_up is None else "dead"] * self._pool.resting

    def _worker_status(self, worker: Worker) -> WorkerStatus:
        lease = self._lease_of(worker)
        devices = lease.devices if lease is not None else ()
        is_gpu = lease is not None and lease.device_type == "gpu"
        return WorkerStatus(
            worker.name,
            worker.state.value,
            worker.started_at,
            worker.pid,
            sum(_resident_bytes(rank.pid) for rank in worker.ranks),
            devices[0].index if is_gpu else None,
            worker.threads,
            worker.running,
            worker.progress,
            worker.plan.load.device_type,
            devices,
            tuple(
                RankStatus(rank.number, rank.pid, _state_of(rank, worker), rank.progress, lease.of_process(rank.number))
                for rank in worker.ranks
                if lease is not None
            ),
        )

    def _lease_of(self, worker: Worker) -> Lease | None:
        return next((lease for lease, holder in self._pool.holders().items() if holder is worker), None)

    def _make_worker(self, lease: Lease) -> Worker:
        machinery = self._machinery
        load = replace(
            machinery.load,
            model=self.name,
            version=self.version,
            directory=str(self.unpacked.directory),
            handler=self.settings.handler or self.unpacked.handler,
            device_type=lease.device_type,
            gpu_id=lease.gpu_id,
            batch_size=self.settings.batch_size,
            loop=self._policy.turn.loop,
            ranks=self.settings.ranks,
            parallel=self.settings.parallel_type if self.settings.ranks > 1 else "",
            manifest_json=self.unpacked.manifest_json,
            config_json=self.unpacked.config_json,
        )
        devices, of_ranks = lease.environments()
        # A folder of the store is not ours to write into.
        environment = devices if self.unpacked.is_ours else {"PYTHONDONTWRITEBYTECODE": "1", **devices}
        spec = WorkerSpec(
            f"{self.name}/{self.version}",
            0,
            self.unpacked.directory,
            environment,
            self.unpacked.python,
            ranks=of_ranks,
            cores=lease.cores,
        )
        return Worker(
            machinery.plan(spec, load, self.settings),
            machinery.placement,
            self._policy,
            machinery.threads,
            self._metrics,
            machinery.clock,
            self._pool.changed,
        )

    def _changed(self) -> None:
        self._group_by_cost()
        self._metrics.worker_states([worker.state.value for worker in self._pool.workers()] + self._absent_workers())
        if self._pool.given_up is not None and not self._pool.ready:
            self._answer_waiting(self._failed(self._pool.given_up))
        elif not self._pool.wanted:  # also what a leaving worker hands back finds nobody
            self._answer_waiting(errors.NoWorker(self.name, self.version))
        self._on_change()

    def _group_by_cost(self) -> None:
        """Once a worker has loaded, its handler has said what its requests are batched by."""
        if self._cost:
            return
        said = (worker.ranks[0].loaded.cost for worker in self._pool.workers() if worker.was_ready)
        self._cost = next(said, "")
        if self._cost:
            key = modes.group_by(self._policy, self.settings, self._cost, self._machinery.clock)
            logger.info(
                "batched by %s; its handler says %s",
                key or "arrival",
                self._cost,
                extra={"model": self.name, "version": self.version},
            )

    def _failed(self, failure: WorkerFailure) -> errors.ModelFailed:
        return errors.ModelFailed(self.name, self.version, str(failure.error))

    def _answer_waiting(self, error: errors.TorchdError) -> None:
        for request in self._policy.waiting():
            request.finish(error)

    def _request_done(self, request: Request) -> None:
        self._unfinished.forget(request)
        if not self._unfinished:
            self._nothing_left.set()
        self._metrics.outcome("ok" if request.error is None else type(request.error).__name__)
        total_seconds = request.replied_at - request.received_at
        self._metrics.total_seconds(total_seconds)
        if request.error is None:
            self._metrics.answered(request.call.version, request.sent_at - request.received_at, total_seconds)


def _state_of(rank: Rank, worker: Worker) -> str:
    """In the words of workers: one that has loaded is ready, or leaves, together with the others."""
    if rank.state is RankState.LOADED:
        return worker.state.value
    return "dead" if rank.state is RankState.GONE else rank.state.value


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
