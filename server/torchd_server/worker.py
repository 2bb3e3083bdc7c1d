"""One worker process, from its start to its end, and the requests it runs.

    STARTING --hello--> LOADING --loaded--> READY --stop--> DRAINING
        \\___________________\\__________________\\________________\\--> DEAD

Whatever ends it (its exit, the end of its socket, bytes that are not the protocol, a time limit) leads to `_die`, which
answers every request it had begun and hands back those it had not.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from torchd_protos.frames import (
    PROTOCOL_VERSION,
    Batch,
    Cancel,
    Credit,
    Failure,
    FrameLimits,
    Hello,
    Item,
    Load,
    Loaded,
    LoadFailed,
    Log,
    Message,
    Metric,
    Progress,
    ProtocolError,
    Reply,
    Settings,
    Started,
    Unload,
)
from torchd_server import errors
from torchd_server.accelerators.cpu import ThreadBudget
from torchd_server.batching.base import Policy
from torchd_server.clock import Clock, Timer
from torchd_server.link import Link, error_of, load_error_of
from torchd_server.metrics import ModelMetrics
from torchd_server.placement.base import Exit, Placement, WorkerProcess, WorkerSpec
from torchd_server.request import Request, State

logger = logging.getLogger(__name__)
model_logger = logging.getLogger("torchd.model")

# Past the response timeout a handler gets this long before its worker is taken for hung, and at most this part of the
# timeout: who wants answers within a second cannot wait five for the next one.
HANG_GRACE_SECONDS = 5.0
HANG_GRACE_SHARE = 0.25
# Between asking a hung worker for its stacks and killing it.
STACK_DUMP_SECONDS = 0.2
# Between Unload and SIGKILL.
UNLOAD_SECONDS = 2.0
# A killed process that the kernel will not let go is given up after this.
ABANDON_SECONDS = 5.0
# What a dead process wrote is read for so long, should something it left behind hold its socket or pipes open.
LAST_WORDS_SECONDS = 0.2
# Workers a request is sent to before it is answered with their death.
SENT_AT_MOST = 2
KEPT_LINES = 50
_incarnations = itertools.count(1)


class WorkerState(enum.Enum):
    """Where a worker is in its life."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """What a worker is to become. Times in seconds."""

    spec: WorkerSpec
    load: Load
    startup_timeout: float
    response_timeout: float
    # Compute threads; 0 takes the worker's share of the cores, which changes with the number of workers.
    threads: int
    frame_limits: FrameLimits


class Worker:
    """A worker process and what it runs. It takes batches from the policy and gives the answers to their requests."""

    def __init__(
        self,
        plan: WorkerPlan,
        placement: Placement,
        policy: Policy,
        threads: ThreadBudget,
        metrics: ModelMetrics,
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        self.incarnation = next(_incarnations)
        self.plan = replace(plan, spec=replace(plan.spec, incarnation=self.incarnation))
        self.state = WorkerState.STARTING
        self.started_at = datetime.now(UTC)
        self.progress = ""
        self.threads = 0
        self.was_ready = False
        self.has_answered = False
        self.stderr: deque[str] = deque(maxlen=KEPT_LINES)
        self.dead: asyncio.Future[errors.TorchdError] = asyncio.get_running_loop().create_future()
        self._placement = placement
        self._policy = policy
        self._threads = threads
        self._metrics = metrics
        self._clock = clock
        self._on_change = on_change
        self._process: WorkerProcess | None = None
        self._link: Link | None = None
        self._link_is_lost = False
        self._exit: Exit | None = None
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._cause: errors.TorchdError | None = None
        # What is with the worker and has not had its last answer; who was released meanwhile is done and stays here.
        self._live: dict[int, Request] = {}
        # What was sent together, until the worker says Started.
        self._unstarted: dict[int, list[Request]] = {}
        self._step = 0
        # Where requests do not join one by one: the batch that runs.
        self._batch: list[Request] = []
        self._nothing_runs: asyncio.Future[None] | None = None
        self._timer: Timer | None = None
        self._heard_at = 0.0

    @property
    def name(self) -> str:
        """Its number on this server, as text."""
        return str(self.incarnation)

    @property
    def pid(self) -> int:
        """Its process, 0 before there is one."""
        return self._process.pid if self._process is not None else 0

    @property
    def is_gone(self) -> bool:
        """Whether nothing of it runs any more: a killed process may stay where no signal reaches it."""
        return self._process is None or self._process.exited.done()

    def when_gone(self, tell: Callable[[], None]) -> None:
        """`tell` is called once nothing of it runs any more."""
        if self._process is not None:
            self._process.exited.add_done_callback(lambda _: tell())

    @property
    def running(self) -> int:
        """Requests with it that somebody still waits for."""
        return sum(request.state is not State.DONE for request in self._live.values())

    @property
    def room(self) -> int:
        """Requests it can take now."""
        return self._policy.turn.room(len(self._live))

    @property
    def identity(self) -> dict[str, str]:
        """What its log records carry."""
        return {"model": self.plan.load.model, "version": self.plan.load.version, "worker": self.name}

    async def start(self) -> None:
        """Starts the process and loads the model; raises LoadFailed or another error if it comes to nothing."""
        share = self._threads.join(self, self._new_thread_share)
        self.threads = self.plan.threads or share
        try:
            self._process = await self._placement.launch(self._spec(), self._output)
            self._process.exited.add_done_callback(self._exited)
            self._check_wanted()
            self._link = await Link.open(self._process.socket, self, self.plan.frame_limits)
            self._check_wanted()
        except OSError as error:
            failure = errors.SpawnFailed(f"the worker process could not be started: {error}")
            self.kill(failure)
            raise failure from error
        self._link.send(replace(self.plan.load, threads=self.threads))
        self._timer = self._clock.call_at(self._clock.time() + self.plan.startup_timeout, self._load_timeout)
        await self._loaded

    def _check_wanted(self) -> None:
        """Whoever stopped it while its process was being started found nothing to kill: that is made up for here."""
        if self.dead.done():
            self._close()
            if self._process is not None:
                self._process.kill()
            raise self.dead.result()

    def allow(self, response_timeout: float) -> None:
        """A batch may take so long from the next one on, and perhaps hold more."""
        self.plan = replace(self.plan, response_timeout=response_timeout)
        if self.state is WorkerState.READY:
            self._policy.has_room(self)

    async def stop(self, grace_seconds: float) -> None:
        """Lets it finish what it runs, at most `grace_seconds`, then unloads it; returns when the process is gone."""
        if self.state is WorkerState.READY:
            self._become(WorkerState.DRAINING)
            self._policy.leave(self)
            if self._live:
                self._nothing_runs = asyncio.get_running_loop().create_future()
                ends: list[asyncio.Future[Any]] = [self._nothing_runs, self.dead]
                await asyncio.wait(ends, timeout=grace_seconds, return_when="FIRST_COMPLETED")
            if self._link is not None and not self._live:
                self._cause = errors.Draining("the worker")
                self._link.send(Unload())
                await asyncio.wait([self.dead], timeout=UNLOAD_SECONDS)
        if not self.dead.done():
            self.kill(self._cause or errors.Draining("the worker"))
        await asyncio.wait([self.dead])

    def kill(self, cause: errors.TorchdError) -> None:
        """Ends the process; `cause` is what its requests are told."""
        self._cause = self._cause or cause
        if self._process is None:
            self._die()
            return
        self._kill_process(self._process)

    def run(self, batch: list[Request], waited_seconds: float) -> None:
        """Sends a batch to the process."""
        now = self._clock.time()
        self._step += 1
        self._unstarted[self._step] = batch
        if not self._policy.turn.joins:
            self._batch = batch
        items = []
        for request in batch:
            request.sent(self, now)
            self._live[request.number] = request
            self._metrics.queue_seconds(now - request.received_at)
            items.append(Item(request.number, max(1, int((request.deadline - now) * 1000)), request.call))
        self._metrics.batch_size(len(batch))
        self._metrics.batch_wait_seconds(waited_seconds)
        if self._timer is None:
            self._heard_at = now
            self._arm_hang_timer()
        if self._link is not None:
            self._link.send(Batch(self._step, items))

    def release(self, request: Request) -> None:
        """A running request was cancelled or has expired: the worker is told, its answer will be dropped."""
        if request.number in self._live and self._link is not None:
            self._link.send(Cancel(request.number))

    def credit(self, request: Request, size: int) -> None:
        """The client took `size` bytes of a streamed answer: the worker may send as many more."""
        if self._link is not None:
            self._link.send(Credit(request.number, size))

    def received(self, message: Message) -> None:
        """What the worker says. A message that has no business here is a ProtocolError, which ends the worker."""
        match message:
            case Reply():
                self._reply(message)
            case Failure():
                self._failure(message)
            case Started():
                self._unstarted.pop(message.step, None)
            case Log():
                origin = {**self.identity, "request": message.request_id, "handler_logger": message.logger}
                model_logger.log(message.level, "%s", message.text, extra=origin)
            case Metric():
                self._metrics.of_handler(message, self.name)
            case Progress():
                self.progress = f"{message.percent} % {message.text}".strip()
            case Hello():
                self._hello(message)
            case Loaded():
                self._become_ready()
            case LoadFailed():
                self._fail_load(load_error_of(message))
            case _:
                raise ProtocolError(f"a worker does not say {type(message).__name__}")

    def link_lost(self, error: ProtocolError | OSError | None) -> None:
        """The socket ended: the process has died, or is of no use any more and is killed."""
        if isinstance(error, ProtocolError) and self._cause is None:
            self._cause = errors.WorkerProtocolBroken(f"the worker broke the protocol: {error}")
        self._link_is_lost = True
        if self._exit is not None:
            self._die()
        elif self._process is not None:
            self._kill_process(self._process)

    def _kill_process(self, process: WorkerProcess) -> None:
        """Kills the process; its exit leads to `_die`, or the time in which the kernel did not let it go."""
        process.kill()
        self._clock.call_at(self._clock.time() + ABANDON_SECONDS, self._die)

    def _spec(self) -> WorkerSpec:
        share = str(self.threads)
        fixed = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), share)
        return replace(self.plan.spec, environment={**fixed, **self.plan.spec.environment})

    def _become(self, state: WorkerState) -> None:
        self.state = state
        self._on_change()

    def _hello(self, hello: Hello) -> None:
        if hello.protocol != PROTOCOL_VERSION:
            raise ProtocolError(f"the worker speaks protocol {hello.protocol}, the daemon {PROTOCOL_VERSION}")
        if hello.incarnation != self.incarnation:
            raise ProtocolError(f"the worker says it is {hello.incarnation}, but {self.incarnation} was started")
        if self.state is not WorkerState.STARTING:
            raise ProtocolError(f"hello while {self.state.value}")
        self._become(WorkerState.LOADING)

    def _become_ready(self) -> None:
        if self.state is not WorkerState.LOADING:
            raise ProtocolError(f"loaded while {self.state.value}")
        self._disarm()
        self.progress = ""
        self.was_ready = True
        self._become(WorkerState.READY)
        self._metrics.worker_loaded(self.name, (datetime.now(UTC) - self.started_at).total_seconds())
        logger.info("ready", extra=self.identity)
        if not self._loaded.done():
            self._loaded.set_result(None)
        self._policy.has_room(self)

    def _fail_load(self, error: errors.LoadFailed) -> None:
        self._cause = self._cause or error  # the process leaves by itself; the load timer stays, should it not

    def _load_timeout(self) -> None:
        seconds = self.plan.startup_timeout
        self._kill_hung(errors.LoadFailed(f"the model was not loaded within startup_timeout, {seconds:g} s"))

    def _answer_timeout(self) -> None:
        if self._clock.time() < self._heard_at + self._patience:  # chunks have come meanwhile
            self._arm_hang_timer()
            return
        limits = f"response_timeout, {self.plan.response_timeout:g} s, and {self._grace:g} s of grace"
        self._kill_hung(errors.WorkerTimeout(f"the worker did not answer within {limits}"))

    @property
    def _patience(self) -> float:
        return self.plan.response_timeout + self._grace

    @property
    def _grace(self) -> float:
        return min(HANG_GRACE_SECONDS, self.plan.response_timeout * HANG_GRACE_SHARE)

    def _kill_hung(self, cause: errors.TorchdError) -> None:
        logger.warning("worker hangs and is killed: %s", cause, extra=self.identity)
        if self._process is not None:
            self._process.dump_stacks()
        self._timer = self._clock.call_at(self._clock.time() + STACK_DUMP_SECONDS, lambda: self.kill(cause))

    def _arm_hang_timer(self) -> None:
        self._timer = self._clock.call_at(self._heard_at + self._patience, self._answer_timeout)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _reply(self, reply: Reply) -> None:
        request = self._live.get(reply.request)
        if request is None:
            raise ProtocolError(f"an answer to request {reply.request}, which this worker does not run")
        if self._unstarted:
            self._mark_started(request)
        if reply.headers:
            self._policy.heard(reply.headers)
        if reply.more:
            self._heard_at = self._clock.time()
            if not request.has_answer:
                self._policy.began(request)
            request.reply(reply)
            if reply.end_of_step:
                raise ProtocolError(f"the batch ended in the middle of the answer to request {reply.request}")
            return
        self.has_answered = True
        del self._live[reply.request]
        request.reply(reply)
        self._left(request, reply.end_of_step)

    def _failure(self, failure: Failure) -> None:
        request = self._live.pop(failure.request, None)
        if request is None:
            raise ProtocolError(f"a failure of request {failure.request}, which this worker does not run")
        if self._unstarted:
            self._mark_started(request)
        self.has_answered = True
        if failure.traceback:
            logger.error("handler failed: %s\n%s", failure.message, failure.traceback, extra=self.identity)
        elif failure.kind != "Cancelled":
            logger.warning("no answer: %s", failure.message, extra=self.identity)
        request.finish(error_of(failure))
        self._left(request, failure.end_of_step)

    def _mark_started(self, request: Request) -> None:
        """An answer says as much as Started."""
        for step, batch in self._unstarted.items():
            if request in batch:
                del self._unstarted[step]
                return

    def _left(self, request: Request, end_of_step: bool) -> None:
        """A request has had its last answer; where requests do not join one by one, `end_of_step` ends the batch."""
        if self._policy.turn.joins:
            self._end([request])
        elif end_of_step:
            if self._live:
                raise ProtocolError(f"the batch ended with {len(self._live)} requests unanswered")
            batch, self._batch = self._batch, []
            self._end(batch)

    def _end(self, requests: list[Request]) -> None:
        """These, which were sent together, run no more: there is room for others."""
        self._heard_at = self._clock.time()
        seconds = self._heard_at - requests[0].sent_at
        self._metrics.worker_seconds(seconds)
        if not self._live:
            self._disarm()
            if self._nothing_runs is not None and not self._nothing_runs.done():
                self._nothing_runs.set_result(None)
        self._policy.finished(self, requests, seconds)
        if self.state is WorkerState.READY:
            self._policy.has_room(self)

    def _new_thread_share(self, threads: int) -> None:
        if self.plan.threads:
            return
        self.threads = threads
        if self._link is not None:
            self._link.send(Settings(threads))

    def _output(self, stream: str, line: str) -> None:
        if stream == "stderr":
            self.stderr.append(line)
        level = logging.WARNING if stream == "stderr" else logging.INFO
        model_logger.log(level, "%s", line, extra=self.identity)

    def _exited(self, future: asyncio.Future[Exit]) -> None:
        if future.cancelled():
            return
        self._exit = future.result()
        if self._link_is_lost or self._link is None:
            self._die()
        else:  # its last frames may still be on their way
            self._clock.call_at(self._clock.time() + LAST_WORDS_SECONDS, self._die)

    def _die(self) -> None:
        """Its end, once: answers what it had begun, hands back what it had not, and tells who keeps it."""
        if self.dead.done():
            return
        end = f"the worker process {self._exit}" if self._exit else "the worker process could not be ended: abandoned"
        cause = self._cause or errors.WorkerDied(end)
        self._disarm()
        self._threads.leave(self)
        self._close()
        self.state = WorkerState.DEAD
        live, self._live = list(self._live.values()), {}
        self._policy.finished(self, self._batch or live, None)
        # What had not begun may run elsewhere; what a second worker did not survive is no bad luck any more.
        unstarted = {request for batch in self._unstarted.values() for request in batch}
        waiting = [request for request in live if request.state is not State.DONE]
        again = [request for request in waiting if request in unstarted and request.sent_times < SENT_AT_MOST]
        self._policy.leave(self, again)
        for request in waiting:
            if request not in again:
                request.finish(cause if isinstance(cause, errors.WorkerLost) else errors.WorkerDied(str(cause)))
        if self.was_ready:
            self._metrics.worker_gone(self.name)
        if not isinstance(cause, errors.Draining):  # nobody had let it go
            self._metrics.worker_failed()
        self.dead.set_result(cause)
        if not self._loaded.done():
            self._loaded.set_exception(cause)
            self._loaded.exception()  # it may be that nobody waits for it any more
        self._on_change()

    def _close(self) -> None:
        if self._link is not None:
            self._link.close()
        if self._process is not None:
            self._clock.call_at(self._clock.time() + LAST_WORDS_SECONDS, self._process.close)
