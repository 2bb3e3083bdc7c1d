"""The loop of a load process: one epoll, its connections, and the schedule that says when which call is asked."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import repeat
from resource import RUSAGE_SELF, getrusage
from select import epoll, select
from time import monotonic
from typing import Protocol

from torchd_clients.bench.connection import Connection, GrpcConnection, RestConnection
from torchd_clients.bench.job import Job, Outcome
from torchd_clients.bench.schedule import Schedule

_TICK = 0.1
_REOPEN_AFTER = 0.25
_CONNECT_WITHIN = 10.0


class Unreachable(Exception):
    """The server takes no connections at the start."""


class Conductor(Protocol):
    """Who says when all processes begin to count. `file` becomes readable when `begin` has something to say."""

    file: int

    def ready(self) -> None:
        """This process has its connections."""

    def warm(self) -> None:
        """This process has warmed up; it goes on asking."""

    def begin(self) -> float:
        """From when on answers count; called when `file` is readable."""

    def progress(self, answered: int, failed: int) -> None:
        """How far it is."""


class Engine:
    """Asks one process' share of a load."""

    def __init__(self, job: Job, conductor: Conductor, clock: Callable[[], float] = monotonic) -> None:
        self._job = job
        self._conductor = conductor
        self._clock = clock
        self._schedule = Schedule(job.load)
        self._poll = epoll()
        self._idle: list[Connection] = []
        self._closed: list[tuple[float, Connection]] = []
        self._trouble = ""
        self._late = f"no answer within {job.load.timeout:g} s"
        self._connections = self._make()
        self._by_file: dict[int, Connection] = {}
        self._begin = 0.0
        self._cpu = 0.0

    def run(self) -> Outcome:
        """Opens the connections, warms up, waits for the others, asks, and counts."""
        self._poll.register(self._conductor.file, 1)
        try:
            self._open_all()
            self._conductor.ready()
            self._schedule.start(self._clock())
            # A collection in the middle of the load would be seen in the latencies.
            gc.collect()
            gc.freeze()
            gc.disable()
            return self._ask()
        finally:
            gc.enable()
            for connection in self._connections:
                connection.close()
            self._poll.close()

    def _make(self) -> list[Connection]:
        job, load = self._job, self._job.load
        if job.protocol == "rest":
            return [
                RestConnection(self, self._poll, job.address, _from(job.requests, number), job.expect)
                for number in range(load.clients)
            ]
        count = min(load.connections, load.clients)
        rooms = [load.clients // count + (number < load.clients % count) for number in range(count)]
        return [
            GrpcConnection(self, self._poll, job.address, _from(job.requests, number), job.expect, job.fields, room)
            for number, room in enumerate(rooms)
        ]

    def _open_all(self) -> None:
        until = self._clock() + _CONNECT_WITHIN
        for connection in self._connections:
            self._open(connection)
        while len(self._idle) < self._job.load.clients:
            if self._closed:
                raise Unreachable(self._trouble)
            if self._clock() > until:
                raise Unreachable(f"no connection within {_CONNECT_WITHIN:g} s")
            self._handle(_TICK)

    def _ask(self) -> Outcome:
        schedule, is_open_loop = self._schedule, self._job.load.rate > 0
        tick, told = 0.0, False
        while True:
            self._handle(self._patience() if is_open_loop or self._clock() < self._begin else _TICK)
            now = self._clock()
            while self._idle and (started := schedule.take(now)) is not None:
                connection = self._idle.pop()
                connection.ask(started)
                connection.flush()
            if not self._cpu and 0.0 < self._begin <= now:
                self._cpu = _cpu_seconds()
            if now < tick:
                continue
            tick = now + _TICK
            if not told and schedule.is_warm(now):
                told = True
                self._conductor.warm()
            self._tick(now)
            if schedule.is_over(now):
                break
        begin, end = schedule.window
        return Outcome(begin, end, schedule.latencies, schedule.errors, _cpu_seconds() - self._cpu)

    def _patience(self) -> float:
        """Seconds until something is to be done though nothing comes."""
        now = self._clock()
        wake = self._schedule.next_due() if self._idle else None
        if now < self._begin and (wake is None or self._begin < wake):
            wake = self._begin
        return _TICK if wake is None else min(_TICK, max(0.0, wake - now))

    def _handle(self, patience: float) -> None:
        if 0.0 < patience < _TICK:
            # epoll's own patience counts in milliseconds; a call that falls due in between would be late by one.
            select([self._poll], [], [], patience)
            patience = 0.0
        by_file = self._by_file
        for file, mask in self._poll.poll(patience):
            if (connection := by_file.get(file)) is not None:
                connection.on_event(mask)
            elif file == self._conductor.file:
                self._begin = self._conductor.begin()
                self._schedule.measure(self._begin)

    def _tick(self, now: float) -> None:
        """What is done every now and then: late calls, lost connections, progress."""
        before = now - self._job.load.timeout
        for connection in self._connections:
            connection.expire(before, self._late)
        self._schedule.give_up(before, now, self._late)
        due = [connection for when, connection in self._closed if when <= now]
        self._closed = [(when, connection) for when, connection in self._closed if when > now]
        for connection in due:
            self._open(connection)
        self._conductor.progress(len(self._schedule.latencies), sum(self._schedule.errors.values()))

    def _open(self, connection: Connection) -> None:
        connection.open()
        if connection.file >= 0:
            self._by_file[connection.file] = connection

    # What connections say.

    def take(self) -> float | None:
        """The start of a call that is to be asked now, if there is one."""
        return self._schedule.take(self._clock())

    def ended(self, started: float, reason: str) -> None:
        """A call was answered."""
        self._schedule.ended(started, self._clock(), reason)

    def failed(self, started: float, reason: str) -> None:
        """A call will not be answered."""
        self._schedule.failed(started, self._clock(), reason)

    def again(self, started: float) -> None:
        """A call that the server never looked at."""
        self._schedule.again(started)

    def is_idle(self, connection: Connection) -> None:
        """It has room for one more call."""
        self._idle.append(connection)

    def opened(self, connection: Connection) -> None:
        """It can be asked."""
        self._idle.extend(repeat(connection, connection.room))

    def closed(self, connection: Connection, reason: str, was_open: bool) -> None:
        """It is gone: opened again at once if it had been open, else in a moment."""
        now = self._clock()
        self._trouble = reason
        self._by_file.pop(connection.file, None)
        self._idle = [other for other in self._idle if other is not connection]
        self._closed.append((now if was_open else now + _REOPEN_AFTER, connection))
        if not was_open:
            for _ in range(connection.room):
                self._schedule.refused(now, reason)


def _cpu_seconds() -> float:
    used = getrusage(RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _from(requests: tuple[bytes, ...], number: int) -> tuple[bytes, ...]:
    """The requests in turn, beginning with another one on each connection."""
    first = number % len(requests)
    return requests[first:] + requests[:first]
