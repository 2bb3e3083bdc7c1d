"""The workers of one model version: as many as are wanted, started again when they die, given up if they only fail."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from torchd_server import errors
from torchd_server.accelerators.ledger import Account, Lease
from torchd_server.worker import UNLOAD_SECONDS, Worker, WorkerState

logger = logging.getLogger(__name__)

# This many workers in a row that died before they were ready, and nobody ready: the model has failed.
FAILURES_BEFORE_GIVING_UP = 5
BACK_OFF_FIRST_SECONDS = 0.5
# A model that cannot be loaded must not cost much; one that was ready and died is missed.
BACK_OFF_MOST_SECONDS = 60.0
BACK_OFF_MOST_ONCE_READY_SECONDS = 5.0
JITTER = 0.2


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """Why a worker ended. `stderr` goes on being filled for a moment: the last words of a process arrive after it."""

    worker: str
    at: datetime
    error: errors.TorchdError
    stderr: deque[str]


class _Slot:
    """One wanted worker: the living one, or the pause before the next. Its devices stay its own meanwhile."""

    def __init__(self, number: int, lease: Lease) -> None:
        self.number = number
        # None after they were quarantined and before there are others.
        self.lease: Lease | None = lease
        self.worker: Worker | None = None
        self.leaving = False
        self.task: asyncio.Task[None] | None = None


class WorkerPool:
    """Keeps `wanted` workers alive."""

    def __init__(
        self,
        make_worker: Callable[[Lease], Worker],
        account: Account,
        unload_grace_seconds: float,
        on_change: Callable[[], None],
    ) -> None:
        self.last_failure: WorkerFailure | None = None
        self.given_up: WorkerFailure | None = None
        self._make_worker = make_worker
        self._account = account
        self._grace_seconds = unload_grace_seconds
        self._on_change = on_change
        self._slots: list[_Slot] = []
        self._leaving: dict[asyncio.Task[None], _Slot] = {}
        # Deaths in a row without a successful answer, and of these the last ones before their worker was ready.
        self._deaths = 0
        self._failures = 0
        self._numbers = itertools.count(1)
        self._changed: asyncio.Event = asyncio.Event()

    @property
    def wanted(self) -> int:
        """Workers that should be there."""
        return len(self._slots)

    @property
    def ready(self) -> int:
        """Workers that can take a batch."""
        return sum(worker.state is WorkerState.READY for worker in self.workers())

    @property
    def resting(self) -> int:
        """Wanted workers that are dead and wait for their next start."""
        return sum(slot.worker is None for slot in self._slots)

    def workers(self) -> list[Worker]:
        """The living workers, in the order of their slots."""
        return [slot.worker for slot in self._slots if slot.worker is not None]

    def holders(self) -> dict[Lease, Worker | None]:
        """Every lease of its slots, of those that leave too, with the worker in it."""
        return {slot.lease: slot.worker for slot in (*self._slots, *self._leaving.values()) if slot.lease is not None}

    def scale(self, wanted: int) -> None:
        """Sets the wanted number: new workers start, surplus ones finish and leave; a failed pool tries anew.

        The devices of all new workers are borrowed first: NotEnoughDevices changes nothing.
        """
        missing = wanted - len(self._slots)
        leases = self._account.borrow(missing, len(self._slots)) if missing > 0 else []
        self._revive()
        for lease in leases:
            slot = _Slot(next(self._numbers), lease)
            self._slots.append(slot)
            self._open(slot)
        while len(self._slots) > wanted:
            self._dismiss(self._slots.pop())
        self.changed()

    async def settle(self) -> errors.TorchdError | None:
        """Waits until every wanted worker is ready and every surplus one gone (None), or one has failed (its error)."""
        failure = self.last_failure
        while self.ready < self.wanted:
            if self.last_failure is not failure and self.last_failure is not None:
                return self.last_failure.error
            if self.given_up is not None:
                return self.given_up.error
            self._changed.clear()
            await self._changed.wait()
        if self._leaving:
            await asyncio.wait(self._leaving)
        return None

    async def stop(self, grace_seconds: float) -> None:
        """Dismisses every worker; returns when all processes are gone. The grace holds for those dismissed before."""
        self._grace_seconds = grace_seconds
        while self._slots:
            self._dismiss(self._slots.pop())
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=grace_seconds + UNLOAD_SECONDS)
        for slot in list(self._leaving.values()):
            if slot.worker is not None:
                slot.worker.kill(errors.Draining("the worker"))
        if self._leaving:
            await asyncio.wait(self._leaving)

    def changed(self) -> None:
        """Something about a worker changed: wakes who waits for it; one that got ready after all revives the pool."""
        if self.ready:
            self._revive()
        self._changed.set()
        self._on_change()

    def _revive(self) -> None:
        if self.given_up is None:
            return
        self.given_up = None
        self._deaths = self._failures = 0
        for slot in self._slots:
            if slot.task is None or slot.task.done():
                self._open(slot)

    def _open(self, slot: _Slot) -> None:
        slot.task = asyncio.get_running_loop().create_task(self._keep(slot), name=f"keep worker slot {slot.number}")

    def _dismiss(self, slot: _Slot) -> None:
        slot.leaving = True
        if slot.lease is not None:
            self._account.leave(slot.lease)
        task = asyncio.get_running_loop().create_task(self._let_go(slot), name=f"stop worker slot {slot.number}")
        self._leaving[task] = slot
        task.add_done_callback(self._leaving.pop)

    async def _let_go(self, slot: _Slot) -> None:
        if slot.worker is not None:
            await slot.worker.stop(self._grace_seconds)
        if slot.task is not None:
            slot.task.cancel()  # it may be resting between two starts
            await asyncio.wait([slot.task])
        self._return_lease(slot)

    def _return_lease(self, slot: _Slot) -> None:
        """Gives the devices back, unless a process that could not be ended may still have them (G05, G06)."""
        lease, slot.lease = slot.lease, None
        if lease is None:
            return
        if slot.worker is None or slot.worker.is_gone:
            self._account.give_back(lease)
        else:
            self._account.quarantine(lease)
            slot.worker.when_gone(lambda: self._account.give_back(lease))

    async def _lease_of(self, slot: _Slot) -> Lease:
        """The slot's devices once nobody else holds them, or others; raises NotEnoughDevices."""
        while True:
            lease = slot.lease or self._account.borrow_other(len(self._slots) - 1)
            slot.lease = lease
            if await self._account.wait_free(lease):
                return lease
            self._account.give_back(lease)
            slot.lease = None

    async def _keep(self, slot: _Slot) -> None:
        """Runs one worker after the other in this slot, until it is dismissed or the pool gives up."""
        while not slot.leaving and self.given_up is None:
            try:
                slot.worker = worker = self._make_worker(await self._lease_of(slot))
            except errors.NotEnoughDevices as error:
                self._note_failure(None, error)
            except Exception as error:  # a bug of ours must not end the slot in silence
                logger.exception("a worker could not be made")
                self._note_failure(None, errors.LoadFailed(f"the worker could not be made: {error}"))
            else:
                await self._live(worker)
                if slot.leaving:
                    return
                if not worker.is_gone:
                    self._return_lease(slot)
                slot.worker = None
                self._note_failure(worker, worker.dead.result())
            if self.given_up is None:
                await asyncio.sleep(self._back_off())

    async def _live(self, worker: Worker) -> None:
        """From its start to its death, however it comes."""
        try:
            await worker.start()
        except errors.TorchdError as error:
            logger.debug("worker %s did not start: %s", worker.name, error)
        except Exception as error:
            logger.exception("worker %s could not be started", worker.name)
            worker.kill(errors.LoadFailed(f"the worker could not be started: {error}"))
        await asyncio.wait([worker.dead])

    def _note_failure(self, worker: Worker | None, error: errors.TorchdError) -> None:
        self._deaths = 1 if worker is not None and worker.has_answered else self._deaths + 1
        # What this machine cannot spare (descriptors, processes, devices) is no fault of the model, and may come back.
        blames_model = not isinstance(error, errors.SpawnFailed | errors.NotEnoughDevices)
        was_ready = worker is not None and worker.was_ready
        self._failures = 0 if was_ready else self._failures + blames_model
        name, stderr = (worker.name, worker.stderr) if worker is not None else ("", deque[str]())
        self.last_failure = WorkerFailure(name, datetime.now(UTC), error, stderr)
        trace = getattr(error, "traceback", "")
        identity = worker.identity if worker is not None else {}
        logger.error("worker failed: %s%s", error, f"\n{trace}" if trace else "", extra=identity)
        if self._failures >= FAILURES_BEFORE_GIVING_UP and self.ready == 0:
            self.given_up = self.last_failure
            logger.error("given up after %d failures in a row", self._failures, extra=identity)
        self.changed()

    def _back_off(self) -> float:
        """Nothing after the first failure, then 0.5 s, doubled up to a minute, with jitter so that models spread."""
        if self._deaths <= 1:
            return 0.0
        most = BACK_OFF_MOST_SECONDS if self._failures else BACK_OFF_MOST_ONCE_READY_SECONDS
        seconds = min(most, BACK_OFF_FIRST_SECONDS * 2.0 ** min(self._deaths - 2, 20))
        return seconds * random.uniform(1 - JITTER, 1 + JITTER)
