"""useJobTicket: a request begins at once or is refused at once (torchserve.md, section 4.1; seed of large models)."""

from __future__ import annotations

from typing import Any

import grpc
from faults.arena import Arena, Client, wait_workers, worker_pids
from harness.gate import Visitor
from harness.surfaces import Error

TWO_WORKERS: dict[str, Any] = {"minWorkers": 2, "maxWorkers": 2, "jobQueueSize": 2, "useJobTicket": True}


def refusal(arena: Arena, client: Client) -> Error:
    """The error of a request that is refused."""
    error = arena.predict(client).error
    assert error is not None, "it was accepted"
    return error


def check_no_ticket(arena: Arena, client: Client) -> None:
    """The next request is refused, with the code of each surface."""
    error = refusal(arena, client)
    assert error.code == (grpc.StatusCode.RESOURCE_EXHAUSTED.name if client.name == "grpc" else 503)
    assert error.reason == "NO_TICKET"


def test_the_third_of_three_is_refused_while_the_others_run(arena: Arena, surface: str) -> None:
    """Two workers and a queue of two: without tickets the third and the fourth would wait."""
    arena.pack(**TWO_WORKERS)
    with arena.daemon(models=("zoo=zoo-1.0.mar",)) as daemon:
        client = arena.client(surface, daemon)
        wait_workers(client, 2)
        running = [arena.send(client, "hold") for _ in range(2)]
        visitors = [arena.gate.wait_visitor() for _ in running]
        assert {visitor.pid for visitor in visitors} == worker_pids(client)
        check_no_ticket(arena, client)
        check_no_ticket(arena, client)
        assert not any(call.is_answered for call in running), "nobody waited for them"

        visitors[0].let_through()
        first = next(call for call in running if call.id == visitors[0].request)
        assert first.answer().json()["pid"] == visitors[0].pid
        assert arena.predict(client).json()["pid"] == visitors[0].pid, "the worker that is free takes the fourth"
        visitors[1].let_through()
        assert [call.answer().error for call in running] == [None, None]


def test_without_tickets_they_wait(arena: Arena, surface: str) -> None:
    """The control: the same model, and the third and fourth are answered when a worker is free."""
    arena.pack(**TWO_WORKERS | {"useJobTicket": False})
    with arena.daemon(models=("zoo=zoo-1.0.mar",)) as daemon:
        client = arena.client(surface, daemon)
        wait_workers(client, 2)
        running = [arena.send(client, "hold") for _ in range(2)]
        visitors = [arena.gate.wait_visitor() for _ in running]
        waiting = [arena.send(client) for _ in range(2)]
        for visitor in visitors:
            visitor.let_through()
        assert [call.answer().error for call in (*running, *waiting)] == [None] * 4


def test_a_worker_that_loads_is_no_ticket(arena: Arena, surface: str) -> None:
    """Of two workers one is ready: the second request is refused, and taken once the other is ready too."""
    arena.pack(**TWO_WORKERS, handler={"load_gate": arena.gate.address})
    with arena.daemon(models=("zoo=zoo-1.0.mar",)) as daemon:
        client = arena.client(surface, daemon)
        loading = [arena.gate.wait_visitor() for _ in range(2)]
        check_no_ticket(arena, client)

        loading[0].let_through()
        wait_workers(client, 1)
        running = arena.send(client, "hold")
        visitor = arena.gate.wait_visitor()
        check_no_ticket(arena, client)

        loading[1].let_through()
        wait_workers(client, 2)
        assert arena.predict(client).json()["pid"] == loading[1].pid
        visitor.let_through()
        assert running.answer().error is None


def test_a_worker_that_died_is_no_ticket_until_it_is_back(arena: Arena, surface: str) -> None:
    """W01: its place counts again when its successor is ready."""
    arena.pack(**TWO_WORKERS, handler={"load_gate": arena.gate.address})
    with arena.daemon(models=("zoo=zoo-1.0.mar",)) as daemon:
        client = arena.client(surface, daemon)
        for visitor in [arena.gate.wait_visitor() for _ in range(2)]:
            visitor.let_through()
        pids = wait_workers(client, 2)
        running = arena.send(client, "hold")
        visitor = arena.gate.wait_visitor()

        arena.nemesis.kill(*(pids - {visitor.pid}))
        successor: Visitor = arena.gate.wait_visitor()
        assert successor.request == "load"
        check_no_ticket(arena, client)

        successor.let_through()
        wait_workers(client, 2)
        assert arena.predict(client).json()["pid"] == successor.pid
        visitor.let_through()
        assert running.answer().error is None
