#!/usr/bin/env python3
"""Sends full batches from many threads and prints, every few seconds, requests per second and their latency.

A thread sends the requests of a batch at once, waits for all of them, and begins anew. Ends with exit code 1 when a
request was not answered.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

if __name__ == "__main__":  # as a script, it has only its own folder on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from neuron.target import REQUEST_SECONDS, Refused, RestConnection, Target, add_options, parts_of, target_of
from torchd_clients import AsyncClient, TorchdError

PARTS = parts_of("Every sentence of this benchmark is made up.", "All of the sentences in here have been invented.")

# Takes in the latency of a request that has been answered.
Record = Callable[[float], None]
# Sends one batch from the thread of this number and waits for its answers.
Send = Callable[[int], Awaitable[None]]


@dataclass(slots=True)
class Measured:
    """What has been answered so far: how many, and how long the latest of them took."""

    window: int
    requests: int = 0
    latencies: deque[float] = field(default_factory=deque)

    def record(self, latency: float) -> None:
        """Takes in one answer."""
        self.requests += 1
        self.latencies.append(latency)
        if len(self.latencies) > self.window:
            self.latencies.popleft()

    def percentiles(self) -> tuple[float, float]:
        """The median of the window and its 90th percentile, in seconds; zeros while there is nothing."""
        if len(self.latencies) < 2:
            return (0.0, 0.0) if not self.latencies else (self.latencies[0], self.latencies[0])
        tenths = statistics.quantiles(self.latencies, n=10, method="inclusive")
        return tenths[4], tenths[8]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures for as long as the options say."""
    options = _parser().parse_args(arguments)
    target = target_of(options)
    at_once = options.at_once or target.batch_size
    try:
        asyncio.run(_measure(target, options, at_once))
    except ExceptionGroup as failed:
        refused, other = failed.split((Refused, TorchdError, OSError, http.client.HTTPException))
        if other is not None or refused is None:
            raise
        print(f"error: {refused.exceptions[0]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


async def _measure(target: Target, options: argparse.Namespace, at_once: int) -> None:
    measured = Measured(options.window)
    connected = _over_rest if target.rest else _over_grpc
    async with connected(target, options.threads, at_once, measured.record) as send, asyncio.TaskGroup() as tasks:
        senders = [tasks.create_task(_send_on(send, number)) for number in range(options.threads)]
        try:
            await _report(measured, options, target, at_once)
        finally:
            for sender in senders:
                sender.cancel()


async def _send_on(send: Send, number: int) -> None:
    while True:
        await send(number)


async def _report(measured: Measured, options: argparse.Namespace, target: Target, at_once: int) -> None:
    """Prints a line at once and then one per interval, or one document at the end."""
    started = before = time.perf_counter()
    answered = 0
    lines = []
    while True:
        now = time.perf_counter()
        throughput = (measured.requests - answered) / (now - before) if now > before else 0.0
        before, answered = now, measured.requests
        p50, p90 = measured.percentiles()
        lines.append({"seconds": now - started, "throughput": throughput, "p50": p50, "p90": p90})
        if not options.json:
            figures = f"current throughput {throughput:.1f}, latency p50={p50:.3f} p90={p90:.3f}"
            print(f"pid {os.getpid()}: {figures}", flush=True)
        if now - started >= options.duration:
            break
        await asyncio.sleep(min(options.interval, options.duration - (now - started)))
    if options.json:
        surface = "rest" if target.rest else "grpc"
        about = {"model": target.model, "surface": surface, "threads": options.threads, "at_once": at_once}
        total = {"requests": measured.requests, "throughput": measured.requests / (before - started)}
        print(json.dumps({"pid": os.getpid(), **about, **total, "intervals": lines}))


@asynccontextmanager
async def _over_grpc(target: Target, threads: int, at_once: int, record: Record) -> AsyncIterator[Send]:
    """All threads share one client, whose calls share one connection."""
    async with AsyncClient(target.grpc, token=target.shown, tls=target.tls, timeout=REQUEST_SECONDS) as client:

        async def ask() -> None:
            started = time.perf_counter()
            await client.predict(target.model, PARTS)
            record(time.perf_counter() - started)

        async def send(number: int) -> None:
            await asyncio.gather(*(ask() for _ in range(at_once)))

        yield send


@asynccontextmanager
async def _over_rest(target: Target, threads: int, at_once: int, record: Record) -> AsyncIterator[Send]:
    """Each thread has a persistent connection for each request of its batch."""
    with ExitStack() as opened, ThreadPoolExecutor(threads) as pool:
        connections = [
            [opened.enter_context(closing(RestConnection(target))) for _ in range(at_once)] for _ in range(threads)
        ]

        async def send(number: int) -> None:
            loop = asyncio.get_running_loop()

            def answered(latency: float) -> None:
                loop.call_soon_threadsafe(record, latency)

            await loop.run_in_executor(pool, _send_over, connections[number], answered)

        try:
            yield send
        finally:
            # The time is over; what is queued could take minutes yet.
            for connection in chain.from_iterable(connections):
                connection.hang_up()


def _send_over(connections: Sequence[RestConnection], record: Record) -> None:
    """Sends a request over each connection, then reads every answer."""
    started = []
    for connection in connections:
        started.append(time.perf_counter())
        connection.send(PARTS)
    for began, connection in zip(started, connections, strict=True):
        connection.receive()
        record(time.perf_counter() - began)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark_bert.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--threads", "--num_thread", type=int, default=64, metavar="N", help="threads (%(default)s)")
    add("--at-once", type=int, metavar="N", help="requests that a thread sends at once (the batch size)")
    add("--duration", "--throughput_time", type=float, default=300.0, metavar="S", help="seconds (%(default)g)")
    add("--interval", "--throughput_interval", type=float, default=10.0, metavar="S", help="per line (%(default)g)")
    add("--window", "--latency_window_size", type=int, default=1000, metavar="N", help="latest latencies (%(default)s)")
    add("--json", action="store_true", help="print one JSON document at the end instead of lines")
    add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
