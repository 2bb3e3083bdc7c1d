"""A worker's life: it says hello, loads one model, runs batches until it is told to stop, and leaves."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from socket import socket
from typing import TYPE_CHECKING

from torchd_protos.frames import (
    PROTOCOL_VERSION,
    Batch,
    Hello,
    Load,
    Loaded,
    Message,
    Progress,
    Settings,
    Unload,
)
from torchd_workers.batch_loop import BatchLoop
from torchd_workers.channel import Channel
from torchd_workers.device import ComputeThreads
from torchd_workers.failures import load_failure_of
from torchd_workers.handler import Handler
from torchd_workers.loader import HandlerNotUsable, context_for, load_handler
from torchd_workers.logs import LogForwarder
from torchd_workers.metrics import Metrics, send_by
from torchd_workers.step_loop import StepLoop
from torchd_workers.streaming import ChunkSender

if TYPE_CHECKING:
    from torchd_workers.group import Group
    from torchd_workers.leader import LeaderGroup
    from torchd_workers.peers import Peer

LOAD_FAILED = 1
LOOPS: dict[str, type[BatchLoop] | type[StepLoop]] = {"": BatchLoop, "step": StepLoop}


class Worker:
    """One process with one model. User code runs in the thread that calls `run`, the main one."""

    def __init__(
        self,
        channel: Channel,
        incarnation: int,
        rank: int,
        group: Sequence[socket] = (),
    ) -> None:
        """`group` are its sockets to the other ranks: the leader's to every follower, a follower's to the leader."""
        self._channel = channel
        self._incarnation = incarnation
        self._rank = rank
        self._sockets = group
        self._logs = LogForwarder(channel)

    def run(self) -> int:
        """Lives; gives the exit status. The end of the socket ends the process, whatever it is at."""
        self._channel.start(has_others=self._rank > 0)
        self._channel.send(Hello(PROTOCOL_VERSION, self._incarnation, self._rank, os.getpid()))
        _forward_logs(self._logs)
        match self._channel.receive():
            case Load() as load:
                return self._serve(load)
            case Unload():
                return 0
            case other:
                return self._refuse(other)

    def _serve(self, load: Load) -> int:
        threads = ComputeThreads(load.threads)
        if not self._sockets:
            return self._lead(load, threads, None)
        # Imported where it is used: most workers are alone, and start sooner without it.
        from torchd_workers.leader import LeaderGroup
        from torchd_workers.peers import Peer

        if self._rank:
            return self._follow(load, threads, Peer(0, *self._sockets))
        peers = [Peer(rank, each) for rank, each in enumerate(self._sockets, 1)]
        group = LeaderGroup(peers, load.parallel != "pp", self._channel.leave)
        group.start()
        return self._lead(load, threads, group)

    def _lead(self, load: Load, threads: ComputeThreads, group: LeaderGroup | None) -> int:
        """Serves requests, as the leader of a group or alone."""
        status = self._serve_async(load, threads, group) if load.loop == "async" else self._loop(load, threads, group)
        if group is not None and status == 0:
            group.dismiss()
        return status

    def _loop(self, load: Load, threads: ComputeThreads, group: LeaderGroup | None) -> int:
        handler = self._load(load, threads, group)
        if handler is None:
            return LOAD_FAILED
        loop = LOOPS[load.loop](self._channel, handler, load, group)
        while True:
            match self._channel.receive_now() if loop.is_busy else self._channel.receive():
                case None:
                    loop.step()
                case Batch() as batch:
                    threads.apply()
                    loop.take(batch)
                case Settings(threads=count):
                    threads.change(count)
                case Unload():
                    return 0
                case other:
                    return self._refuse(other)

    def _serve_async(self, load: Load, threads: ComputeThreads, group: Group | None) -> int:
        # Imported where it is used: asyncio would make every other worker's start longer.
        from torchd_workers.async_loop import AsyncLoop

        loop = AsyncLoop(self._channel, load, threads)
        handler = self._load(load, threads, group)
        if handler is None:
            return LOAD_FAILED
        match loop.run(handler):
            case Unload():
                return 0
            case other:
                return self._refuse(other)

    def _follow(self, load: Load, threads: ComputeThreads, leader: Peer) -> int:
        from torchd_workers.follower import FollowerGroup
        from torchd_workers.follower_loop import FollowerLoop, no_chunk

        channel = self._channel
        group = FollowerGroup(self._rank, load.ranks, leader, channel, load.parallel != "pp", channel.leave)
        group.start()
        handler = self._load(load, threads, group)
        if handler is None:
            return LOAD_FAILED
        handler.context.send_chunk = no_chunk
        FollowerLoop(channel, group, handler, load, threads).run()
        return 0

    def _load(self, load: Load, threads: ComputeThreads, group: Group | None) -> Handler | None:
        """Loads the model and says how that went."""
        self._channel.send(Progress(0, f"loading {load.handler}"))
        try:
            send_by(self._channel.send)
            context = context_for(load, Metrics(self._channel.send, load.model, load.metrics_json))
            self._logs.follow(context)
            context.send_chunk = ChunkSender(self._channel, load.max_response_bytes, waits=not load.loop).send
            context.group = group
            context.send_progress = self._progress
            if group is not None and group.same_rows and load.loop == "async":
                raise HandlerNotUsable(
                    "asyncCommunication calls the handler with each request by itself, and parallelType "
                    f"{load.parallel} that of every rank together; use continuousBatching, or parallelType pp"
                )
            handler = load_handler(load.handler, context, threads, load.service_envelope)
            context.send_progress = None
        except BaseException as error:  # user code may raise anything, SystemExit too
            self._channel.send(load_failure_of(error, load.directory))
            return None
        self._channel.send(Loaded(cost=handler.cost, optimization_json=context.optimization_json))
        return handler

    def _progress(self, percent: int, text: str) -> None:
        self._channel.send(Progress(percent, text))

    def _refuse(self, message: Message) -> int:
        self._channel.leave(f"the daemon sent a {type(message).__name__} out of turn")
        return 0


def _forward_logs(forwarder: LogForwarder) -> None:
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(forwarder)
