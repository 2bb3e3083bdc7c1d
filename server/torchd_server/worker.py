"""One worker, from its start to its end, and the requests it runs.

    STARTING --hello--> LOADING --loaded--> READY --stop--> DRAINING
        \\___________________\\__________________\\________________\\--> DEAD

Whatever ends it (the exit of a process, the end of a socket, bytes that are not the protocol, a time limit) leads to
`group_gone`, which answers every request it had begun and hands back those it had not.
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
from functools import partial
from typing import Any

from torchd_protos.frames import (
    Batch,
    Cancel,
    Credit,
    Failure,
    FrameLimits,
    Header,
    Item,
    Load,
    Message,
    Metric,
    ProtocolError,
    Replies,
    Reply,
    Settings,
)
from torchd_server import errors
from torchd_server.accelerators.cpu import ThreadBudget
from torchd_server.batching.base import Policy
from torchd_server.clock import Clock, Timer
from torchd_server.group import Group
from torchd_server.link import Link, error_of
from torchd_server.metrics import ModelMetrics
from torchd_server.placement.base import Placement, WorkerSpec
from torchd_server.rank import Rank
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
    """A worker and what it runs. It takes batches from the policy and gives the answers to their requests."""

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
        self._group = Group(self, self.plan.spec, self.identity, clock)
        # The leader's: what belongs to a request is sent over it at once.
        self._link: Link | None = None
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # What is with the worker and has not had its last answer; who was released meanwhile is done and stays here.
        self._live: dict[int, Request] = {}
        self._step = 0
        # Where requests do not join one by one: the batch that runs, and the one that waits in its socket.
        self._batches: deque[list[Request]] = deque()
        # When the batch that runs had the worker to itself.
        self._free_at = 0.0
        self._nothing_runs: asyncio.Future[None] | None = None
        self._labels = [Header("ModelName", plan.load.model), Header("Level", "Model")]
        # Of the load or, while something runs, of the next answer; it is set again when it rings, not at each answer.
        self._timer: Timer | None = None
        self._kill_timer: Timer | None = None
        self._heard_at = 0.0

    @property
    def name(self) -> str:
        """Its number on this server, as text."""
        return str(self.incarnation)

    @property
    def pid(self) -> int:
        """The leader's process, 0 before there is one."""
        return self._group.leader.pid

    @property
    def ranks(self) -> tuple[Rank, ...]:
        """Its processes, the leader first."""
        return self._group.ranks

    @property
    def is_gone(self) -> bool:
        """Whether nothing of it runs any more: a killed process may stay where no signal reaches it."""
        return self._group.is_gone

    def when_gone(self, tell: Callable[[], None]) -> None:
        """`tell` is called once nothing of it runs any more."""
        self._group.when_gone(tell)

    @property
    def progress(self) -> str:
        """How far loading is; empty when nothing is said or it is over."""
        return self._group.progress

    @property
    def running(self) -> int:
        """Requests with it that somebody still waits for."""
        return sum(request.state is not State.DONE for request in self._live.values())

    @property
    def room(self) -> int:
        """Requests it can take now."""
        return self._policy.turn.room(len(self._live))

    @property
    def in_hand(self) -> int:
        """Batches it has and has not answered, where it may be sent more behind them."""
        return len(self._batches) if self.state is WorkerState.READY else 0

    @property
    def identity(self) -> dict[str, str]:
        """What its log records carry."""
        return {"model": self.plan.load.model, "version": self.plan.load.version, "worker": self.name}

    async def start(self) -> None:
        """Starts the processes and loads the model; raises LoadFailed or another error if it comes to nothing."""
        self._take_threads()
        try:
            await self._group.start(self._placement, self._spec(), self._output, self, self.plan.frame_limits)
        except OSError as error:
            failure = errors.SpawnFailed(f"the worker process could not be started: {error}")
            self.kill(failure)
            raise failure from error
        self._link = self._group.leader.link
        self._group.load(replace(self.plan.load, threads=self.threads))
        self._timer = self._clock.call_at(self._clock.time() + self.plan.startup_timeout, self._load_timeout)
        await self._loaded

    def _take_threads(self) -> None:
        """Every process computes, so each one takes a share of the cores."""
        for rank in self.ranks:
            share = self._threads.join(rank, partial(self._new_thread_share, rank))
        self.threads = self.plan.threads or share

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
            if not self._live:
                self._group.unload()
                await asyncio.wait([self.dead], timeout=UNLOAD_SECONDS)
        if not self.dead.done():
            self.kill(errors.Draining("the worker"))
        await asyncio.wait([self.dead])

    def kill(self, cause: errors.TorchdError) -> None:
        """Ends the processes; `cause` is what its requests are told, where it is the first."""
        self._group.kill(cause)

    def run(self, batch: list[Request], waited_seconds: float) -> None:
        """Sends a batch to the process."""
        now = self._clock.time()
        self._step += 1
        if not self._policy.turn.joins:
            self._batches.append(batch)
        if not self._live:
            self._heard_at = now
        items = []
        for request in batch:
            request.sent(self, now, self._step)
            self._live[request.number] = request
            self._metrics.queue_seconds(now - request.received_at)
            items.append(Item(request.number, max(1, int((request.deadline - now) * 1000)), request.call))
        self._metrics.batch_size(len(batch))
        self._metrics.batch_wait_seconds(waited_seconds)
        if self._timer is None:
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
        """What the leader says; what it says of itself is heard by its rank."""
        match message:
            case Replies():
                self._replies(message)
            case Reply():
                self._reply(message)
            case Failure():
                self._failure(message)
            case _:
                self._group.leader.received(message)

    def link_lost(self, error: ProtocolError | OSError | None) -> None:
        """The leader's socket ended."""
        self._group.leader.link_lost(error)

    def measured(self, metric: Metric) -> None:
        """A rank's handler has given a value."""
        self._metrics.of_handler(metric, self.name)

    def _spec(self) -> WorkerSpec:
        share = str(self.threads)
        fixed = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), share)
        return replace(self.plan.spec, environment={**fixed, **self.plan.spec.environment})

    def _become(self, state: WorkerState) -> None:
        self.state = state
        self._on_change()

    def group_loading(self) -> None:
        """Its processes have said who they are."""
        self._become(WorkerState.LOADING)

    def group_loaded(self) -> None:
        """It takes requests from now on."""
        self._disarm()
        self.was_ready = True
        self._become(WorkerState.READY)
        self._metrics.worker_loaded(self.name, (datetime.now(UTC) - self.started_at).total_seconds())
        logger.info("ready", extra=self.identity)
        if not self._loaded.done():
            self._loaded.set_result(None)
        self._policy.has_room(self)

    def _load_timeout(self) -> None:
        seconds = self.plan.startup_timeout
        text = f"{self._group.late}the model was not loaded within startup_timeout, {seconds:g} s"
        self._kill_hung(errors.LoadFailed(text))

    def _answer_timeout(self) -> None:
        self._timer = None
        if not self._live:  # nothing is awaited: the next batch sets it again
            return
        if self._clock.time() < self._heard_at + self._patience:  # answers have come meanwhile
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
        self._group.dump_stacks()
        self._kill_timer = self._clock.call_at(self._clock.time() + STACK_DUMP_SECONDS, lambda: self.kill(cause))

    def _arm_hang_timer(self) -> None:
        self._timer = self._clock.call_at(self._heard_at + self._patience, self._answer_timeout)

    def _disarm(self) -> None:
        for timer in (self._timer, self._kill_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._kill_timer = None

    def _replies(self, replies: Replies) -> None:
        """The running batch has been through the handler: the rest of its answers, and the time that took."""
        batch = self._batches[0] if self._batches else ()
        for number, body in zip(replies.requests, replies.bodies, strict=True):
            self._reply(Reply(number, body=body))
        if replies.end_of_step:
            self._end_batch()
        if self._metrics.hears_requests:
            ids = ",".join([request.call.request_id for request in batch])
            milliseconds = round(replies.handler_us / 1000, 2)
            self.measured(Metric("PredictionTime", milliseconds, "Milliseconds", "gauge", self._labels, ids))

    def _reply(self, reply: Reply) -> None:
        request = self._live.get(reply.request)
        if request is None:
            raise ProtocolError(f"an answer to request {reply.request}, which this worker does not run")
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
        self.has_answered = True
        if failure.traceback:
            logger.error("handler failed: %s\n%s", failure.message, failure.traceback, extra=self.identity)
        elif failure.kind != "Cancelled":
            logger.warning("no answer: %s", failure.message, extra=self.identity)
        error = error_of(failure)
        if isinstance(error, errors.DeviceLost):
            self._group.leader_leaves(error)
        request.finish(error)
        self._left(request, failure.end_of_step)

    def _left(self, request: Request, end_of_step: bool) -> None:
        """A request has had its last answer; where requests do not join one by one, `end_of_step` ends the batch."""
        if self._policy.turn.joins:
            self._end([request])
        elif end_of_step:
            self._end_batch()

    def _end_batch(self) -> None:
        if not self._batches:
            raise ProtocolError("a batch ended where none runs")
        batch = self._batches[0]
        if unanswered := sum(request.number in self._live for request in batch):
            raise ProtocolError(f"the batch ended with {unanswered} requests unanswered")
        self._batches.popleft()
        self._end(batch)

    def _end(self, requests: list[Request]) -> None:
        """These, which were sent together, run no more: there is room for others."""
        self._heard_at = self._clock.time()
        seconds = self._heard_at - max(requests[0].sent_at, self._free_at)
        if not self._policy.turn.joins:
            self._free_at = self._heard_at
        self._metrics.worker_seconds(seconds)
        if not self._live:
            if self._kill_timer is not None:  # its last answer came in the last moment
                self._disarm()
            if self._nothing_runs is not None and not self._nothing_runs.done():
                self._nothing_runs.set_result(None)
        self._policy.finished(self, requests, seconds)
        if self.state is WorkerState.READY:
            self._policy.has_room(self)

    def _new_thread_share(self, rank: Rank, threads: int) -> None:
        if self.plan.threads:
            return
        self.threads = threads
        rank.send(Settings(threads))

    def _output(self, number: int, stream: str, line: str) -> None:
        rank = self.ranks[number]
        if stream == "stderr":
            self.stderr.append(rank.prefix + line)
        level = logging.WARNING if stream == "stderr" else logging.INFO
        model_logger.log(level, "%s", line, extra=rank.identity)

    def group_gone(self) -> None:
        """Its end, once: answers what it had begun, hands back what it had not, and tells who keeps it."""
        cause = self._group.end
        begun = self._group.leader.begun
        self._disarm()
        for rank in self.ranks:
            self._threads.leave(rank)
        self._group.close()
        self.state = WorkerState.DEAD
        live, self._live = list(self._live.values()), {}
        sent = [request for batch in self._batches for request in batch]
        self._policy.finished(self, sent or live, None)
        waiting = [request for request in live if request.state is not State.DONE]
        # What had not begun may run elsewhere; what a second worker did not survive is no bad luck any more, unless it
        # stood behind another batch.
        unbegun = [request for request in waiting if request.step > begun and not request.has_answer]
        first = set(self._batches[0] if self._batches else live)
        again = [request for request in unbegun if request.sent_times < SENT_AT_MOST or request not in first]
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
