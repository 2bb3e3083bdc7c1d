"""The clients of scripts/bench_gpu.py, in a process of their own: so many, each with one request in flight."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import uvloop

from torchd_clients import AsyncClient, Client

REQUEST_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients saw: from the first request sent to the last answer, and each latency, sorted. In seconds."""

    seconds: float
    latencies: list[float]

    @property
    def throughput(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds

    def percentile_ms(self, share: float) -> float:
        """The latency that this share of the requests kept below, in milliseconds."""
        return 1000 * self.latencies[min(len(self.latencies) - 1, int(len(self.latencies) * share))]


def describe(address: str, model: str, payload: bytes) -> dict[str, Any]:
    """What the handler of one of the model's workers says of itself."""
    with Client(address) as client:
        answer = client.predict(model, payload, timeout=REQUEST_SECONDS, metadata={"describe": "True"})
    found: dict[str, Any] = json.loads(answer)
    return found


def send(address: str, model: str, payload: bytes, concurrency: int, requests: int) -> Load:
    """Sends so many requests, never more than `concurrency` at a time."""
    return uvloop.run(_closed_loop(address, model, payload, concurrency, requests))


async def _closed_loop(address: str, model: str, payload: bytes, concurrency: int, requests: int) -> Load:
    latencies: list[float] = []
    left = iter(range(requests))
    async with AsyncClient(address) as client:

        async def loop() -> None:
            for _ in left:
                sent = time.perf_counter()
                await client.predict(model, payload, timeout=REQUEST_SECONDS)
                latencies.append(time.perf_counter() - sent)

        started = time.perf_counter()
        await asyncio.gather(*(loop() for _ in range(concurrency)))
    return Load(time.perf_counter() - started, sorted(latencies))
