"""New settings for a model that serves: no restart, no 409, no request lost (TorchServe wants it registered anew)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from faults.arena import Arena, Call, Client, wait_running, wait_workers, worker_pids
from harness.eventually import eventually
from harness.surfaces import Answer, GrpcSurface, RestSurface


def change(client: Client, **settings: int | bool) -> Answer:
    """ScaleWorker, or its PUT, with these settings; fails if it is refused."""
    if isinstance(client, RestSurface):
        query = "&".join(f"{name}={str(value).lower()}" for name, value in settings.items())
        answer = client.request("PUT", f"/models/zoo?{query}", port="management")
    else:
        request = client.management_messages.ScaleWorkerRequest(model_name="zoo", **settings)
        answer = Answer(client.management.ScaleWorker(request, timeout=60).msg.encode())
    assert answer.error is None, answer.error
    return answer


@contextmanager
def flowing(arena: Arena, client: Client, streams: int = 4) -> Iterator[list[Answer]]:
    """Requests one after another in several streams; gives the answers, all of which are there at the end."""
    over = threading.Event()
    answers: list[Answer] = []

    def flow() -> None:
        while not over.is_set():
            answers.append(arena.predict(client))

    threads = [threading.Thread(target=flow) for _ in range(streams)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()


def wait_for_more(answers: list[Answer]) -> None:
    """Returns when ten more requests have been answered."""
    before = len(answers)
    eventually(lambda: len(answers) >= before + 10)


def held(arena: Arena, client: Client, count: int) -> list[Call]:
    """Requests that run until they are let through the gate."""
    return [arena.send(client, "hold") for _ in range(count)]


def test_everything_changes_while_requests_flow_and_none_is_lost(arena: Arena, surface: str) -> None:
    arena.pack(minWorkers=1, maxWorkers=1, batchSize=1, maxBatchDelay=1, jobQueueSize=100)
    with arena.daemon(models=("zoo=zoo-1.0.mar",)) as daemon:
        client = arena.client(surface, daemon)
        [first] = wait_workers(client, 1)
        with flowing(arena, client) as answers:
            wait_for_more(answers)
            change(client, batch_size=4, max_batch_delay=20)
            wait_for_more(answers)
            change(client, min_worker=3, synchronous=True)
            assert len(worker_pids(client)) == 3
            wait_for_more(answers)
            change(client, batch_size=2, max_batch_delay=0, min_worker=2, max_worker=2, synchronous=True)
            wait_for_more(answers)
            change(client, min_worker=1, max_worker=1, synchronous=True)
            wait_for_more(answers)
        assert [answer.error for answer in answers if answer.error is not None] == []
        [described] = client.describe("zoo").json()
        assert (described["batchSize"], described["maxBatchDelay"]) == (2, 0)
        assert worker_pids(client) == {first}, "the worker that was there first has served all along"


def test_a_new_batch_size_holds_for_the_next_batch(arena: Arena, surface: str) -> None:
    """Requests that wait already are in it."""
    arena.pack(minWorkers=1, maxWorkers=1, batchSize=1, maxBatchDelay=1, jobQueueSize=100)
    with arena.daemon(models=("zoo=zoo-1.0.mar",)) as daemon:
        client, watching = arena.client(surface, daemon), GrpcSurface(daemon)
        wait_workers(client, 1)
        [running] = held(arena, client, 1)
        visitor = arena.gate.wait_visitor()
        waiting = held(arena, client, 3)
        eventually(lambda: client.describe("zoo").json()[0]["jobQueueStatus"]["pendingRequests"] == 3)
        change(client, batch_size=3)
        visitor.let_through()
        next_one = arena.gate.wait_visitor()
        wait_running(watching, "zoo", 3)
        next_one.let_through()
        for _ in range(2):
            arena.gate.wait_visitor().let_through()
        assert [call.answer().error for call in (running, *waiting)] == [None] * 4
        watching.close()


def test_a_shorter_delay_lets_go_of_those_who_wait(arena: Arena, surface: str) -> None:
    """They would wait for a minute, for a batch that does not fill."""
    arena.pack(minWorkers=1, maxWorkers=1, batchSize=8, maxBatchDelay=60_000, batchWait="full", jobQueueSize=100)
    with arena.daemon(models=("zoo=zoo-1.0.mar",)) as daemon:
        client = arena.client(surface, daemon)
        wait_workers(client, 1)
        waiting = [arena.send(client) for _ in range(2)]
        eventually(lambda: client.describe("zoo").json()[0]["jobQueueStatus"]["pendingRequests"] == 2)
        assert not any(call.is_answered for call in waiting)
        change(client, max_batch_delay=1)
        assert [call.answer(20).error for call in waiting] == [None, None]
