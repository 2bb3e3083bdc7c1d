"""The same storm over every way to batch: workers killed and hung, clients that leave, changes of size and number."""

from __future__ import annotations

from typing import Any

import pytest
from faults.arena import Arena, wait_workers, worker_pids
from harness.surfaces import RestSurface

MODES: dict[str, dict[str, Any]] = {
    "dynamic": {"batchSize": 4, "maxBatchDelay": 5},
    "continuous": {"continuousBatching": True, "batchSize": 4},
    "async": {"asyncCommunication": True},
    "sequences": {
        "sequenceBatching": True,
        "batchSize": 4,
        "maxBatchDelay": 5,
        "maxNumSequence": 500,
        "sequenceMaxIdleMSec": 2000,
    },
    "continuous sequences": {
        "sequenceBatching": True,
        "continuousBatching": True,
        "batchSize": 4,
        "maxNumSequence": 500,
        "sequenceMaxIdleMSec": 2000,
    },
}


@pytest.mark.parametrize("mode", MODES)
def test_every_request_of_a_storm_has_one_answer_in_time(arena: Arena, surface: str, mode: str) -> None:
    """P01 to P06, P09, W01, W05, M04, TS18; the ledger looks at all of it."""
    arena.pack(minWorkers=2, maxWorkers=2, responseTimeout=4, jobQueueSize=64, **MODES[mode])
    with arena.daemon(models=("zoo=zoo-1.0.mar",)) as daemon:
        client, rest = arena.client(surface, daemon), RestSurface(daemon)
        calls = []

        def load(count: int = 24) -> None:
            calls.extend(arena.send(client, "sleep", ms=5, timeout=10.0) for _ in range(count))

        def resize(**settings: int) -> None:
            query = "&".join(f"{key}={value}" for key, value in settings.items())
            assert rest.request("PUT", f"/models/zoo?{query}", port="management").error is None

        wait_workers(client, 2)
        load()
        arena.nemesis.kill(min(wait_workers(client, 2)))
        load()
        leaving = [arena.send_and_leave(client, "sleep", ms=5) for _ in range(8)]
        resize(batch_size=1, job_queue_size=4)
        load()
        for one in leaving:
            one.leave()
        resize(batch_size=8, job_queue_size=64)
        hung = min(wait_workers(client, 2))
        arena.nemesis.stop(hung)
        load()
        client.scale("zoo", 0, synchronous=False)
        load(6)
        client.scale("zoo", 2, synchronous=False)
        load()
        for call in calls:
            call.answer()
        eventual = wait_workers(client, 2)
        assert hung not in eventual
        arena.predict(client).json()
        [described] = client.describe("zoo").json()
        assert described["jobQueueStatus"]["pendingRequests"] == 0
        assert worker_pids(client) == eventual
