"""Async handlers: many requests at once in one worker (torchserve.md, sections 6.1, 7.4, 8 and 13 #7)."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faults.arena import Client, wait_running, wait_workers
from harness.archives import pack_model
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.surfaces import SURFACES, GrpcSurface, StreamBroken


@contextmanager
def serving(folder: Path, surface: str = "grpc", **settings: Any) -> Iterator[Client]:
    """A client of a daemon with the async handler."""
    with observed(folder, surface, **settings) as (client, _):
        yield client


@contextmanager
def observed(folder: Path, surface: str, **settings: Any) -> Iterator[tuple[Client, GrpcSurface]]:
    """The same, and a client that can look at the workers."""
    given = {"asyncCommunication": True, "minWorkers": 1, "maxWorkers": 1, **settings}
    entry = pack_model(folder, "coroutines", **given)
    with (
        Daemon(folder, store=folder / "store", models=(entry,)) as daemon,
        SURFACES[surface](daemon) as client,
        GrpcSurface(daemon) as observer,
    ):
        wait_workers(client, 1, "coroutines")
        yield client, observer


def ask(client: Client, timeout: float | None = None, **wish: Any) -> Any:
    """The handler's account after one request."""
    return client.predict("coroutines", json.dumps(wish).encode(), timeout=timeout).json()


def test_fifty_requests_run_at_once_each_with_its_own_answer(tmp_path: Path, surface: str) -> None:
    with serving(tmp_path, surface) as client, ThreadPoolExecutor(50) as crowd:
        answers = list(crowd.map(lambda number: ask(client, seconds=1.0, echo=number), range(50)))
        assert [answer["echo"] for answer in answers] == list(range(50))
        assert max(answer["most"] for answer in answers) == 50


def test_no_more_run_at_once_than_the_queue_may_hold(tmp_path: Path) -> None:
    with serving(tmp_path, jobQueueSize=5) as client, ThreadPoolExecutor(10) as crowd:
        answers = list(crowd.map(lambda number: ask(client, seconds=0.3, echo=number), range(10)))
        assert max(answer["most"] for answer in answers) == 5


def test_streams_of_many_clients_run_beside_each_other(tmp_path: Path, surface: str) -> None:
    with serving(tmp_path, surface) as client, ThreadPoolExecutor(20) as crowd:
        wish = json.dumps({"chunks": 10, "chunk_seconds": 0.02}).encode()
        for chunks in crowd.map(lambda _: b"".join(client.stream("coroutines", wish)), range(20)):
            assert chunks.startswith(b"0123456789{")


def test_a_slow_reader_does_not_stop_the_loop(tmp_path: Path) -> None:
    """K08."""
    with serving(tmp_path) as client:
        slow = client.stream("coroutines", json.dumps({"chunks": 60, "size": 100_000}).encode())
        next(slow)
        assert ask(client, echo=1)["echo"] == 1
        assert len(list(slow)) == 60


def test_a_client_that_goes_cancels_its_task(tmp_path: Path, surface: str) -> None:
    """K02, K03."""
    with serving(tmp_path, surface) as client:
        gone = client.abandon("coroutines", json.dumps({"seconds": 600}).encode())
        eventually(lambda: ask(client)["running"] == 1)
        gone.leave()
        eventually(lambda: ask(client)["cancelled"] == 1)
        assert ask(client)["running"] == 0


def test_a_deadline_cancels_its_task_and_nobody_elses(tmp_path: Path) -> None:
    """K06, section 7.4: responseTimeout holds for each request."""
    with serving(tmp_path, responseTimeout=1) as client, ThreadPoolExecutor(4) as crowd:
        late = crowd.submit(client.predict, "coroutines", json.dumps({"seconds": 60}).encode())
        pid = ask(client, seconds=0.6)["pid"]
        error = late.result(30).error
        assert error is not None
        assert error.code == "DEADLINE_EXCEEDED"
        eventually(lambda: ask(client)["cancelled"] == 1)
        assert ask(client)["pid"] == pid


@pytest.mark.parametrize(
    ("do", "reason"), [("raise", "HANDLER_ERROR"), ("exit", "HANDLER_EXIT"), ("two", "BAD_OUTPUT")]
)
def test_a_failure_costs_its_own_request_alone(tmp_path: Path, do: str, reason: str) -> None:
    with serving(tmp_path) as client, ThreadPoolExecutor(1) as crowd:
        other = crowd.submit(ask, client, seconds=0.5)
        error = client.predict("coroutines", json.dumps({"do": do}).encode()).error
        assert error is not None
        assert error.reason == reason
        assert other.result(30)["pid"] == ask(client)["pid"]


def test_a_killed_worker_answers_what_ran_and_another_takes_over(tmp_path: Path, surface: str) -> None:
    """W01, section 13 #7: TorchServe's async jobs get no answer."""
    with observed(tmp_path, surface, jobQueueSize=3) as (client, observer), ThreadPoolExecutor(8) as crowd:
        pid = ask(client)["pid"]
        ran = [crowd.submit(client.predict, "coroutines", json.dumps({"seconds": 600}).encode()) for _ in range(3)]
        wait_running(observer, "coroutines", 3)
        queued = [crowd.submit(ask, client, echo=number) for number in range(2)]
        eventually(lambda: client.describe("coroutines").json()[0]["jobQueueStatus"]["pendingRequests"] == 2)
        os.kill(pid, signal.SIGKILL)
        for one in ran:
            error = one.result(60).error
            assert error is not None
            assert error.code == {"grpc": "UNAVAILABLE", "rest": 500}[surface]
        assert [one.result(60)["echo"] for one in queued] == [0, 1]
        assert ask(client)["pid"] != pid


def test_a_worker_that_dies_in_mid_stream_breaks_the_stream_with_its_reason(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        with pytest.raises(StreamBroken) as broken:
            list(client.stream("coroutines", json.dumps({"chunks": 3, "do": "die"}).encode()))
        assert broken.value.error.reason == "WORKER_DIED"
        assert isinstance(client, GrpcSurface)
