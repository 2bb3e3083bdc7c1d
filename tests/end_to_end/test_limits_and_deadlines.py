"""Full queues and deadlines: refused at once, answered in time, never executed too late."""

from __future__ import annotations

import json
from collections.abc import Iterator

import grpc
import pytest
from faults.arena import Arena, Client, wait_workers
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.surfaces import GrpcSurface, RestSurface, error_of

QUEUE = 3
LATE = {"grpc": "DEADLINE_EXCEEDED", "rest": 504}


@pytest.fixture
def daemon(arena: Arena) -> Iterator[Daemon]:
    """A daemon that serves the zoo with one worker and a short queue."""
    arena.pack(minWorkers=1, maxWorkers=1, jobQueueSize=QUEUE)
    with arena.daemon(models=("zoo=zoo-1.0.mar",)) as daemon:
        yield daemon


@pytest.fixture
def client(arena: Arena, daemon: Daemon, surface: str) -> Client:
    """A client of the surface under test."""
    return arena.client(surface, daemon)


def queue_of(client: Client) -> tuple[int, int]:
    """(waiting, room left)."""
    [description] = client.describe("zoo").json()
    status = description["jobQueueStatus"]
    return status["pendingRequests"], status["remainingCapacity"]


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(arena: Arena, client: Client) -> None:
    """P07, P08: with reason and retry information; whoever was accepted is answered."""
    held = arena.send(client, "hold")
    visitor = arena.gate.wait_visitor()
    # One may be sent ahead to the worker, so it takes QUEUE or QUEUE + 1 to fill the queue.
    first = [arena.send(client) for _ in range(QUEUE + 1)]
    eventually(lambda: queue_of(client) == (QUEUE, 0))
    for _ in range(3):
        error = arena.predict(client).error
        assert error is not None
        assert error.code == {"grpc": "RESOURCE_EXHAUSTED", "rest": 503}[client.name]
        assert error.reason == "QUEUE_FULL"
        assert error.retry_after is not None
        assert error.retry_after > 0
        assert "full" in error.message
    assert sum(call.is_answered for call in first) <= 1
    assert not held.is_answered
    visitor.let_through()
    held.answer().json()
    assert sum(call.answer().error is None for call in first) >= QUEUE
    assert queue_of(client) == (0, QUEUE)


def test_a_deadline_that_passes_in_the_queue_is_not_executed(arena: Arena, client: Client) -> None:
    """K04, P09."""
    held = arena.send(client, "hold")
    visitor = arena.gate.wait_visitor()
    late = arena.send(client, timeout=0.3)
    error = late.answer().error
    assert error is not None
    assert error.code == LATE[client.name]
    eventually(lambda: queue_of(client)[0] == 0)
    visitor.let_through()
    held.answer().json()
    arena.predict(client).json()
    assert late.id not in {event.id for event in arena.ledger.executed()}


def test_a_deadline_that_passes_in_flight_keeps_the_worker(arena: Arena, client: Client) -> None:
    """K06: the client is told in time; the handler runs on and its answer is dropped."""
    [before] = wait_workers(client, 1)
    late = arena.send(client, "hold", timeout=1)
    visitor = arena.gate.wait_visitor()
    error = late.answer().error
    assert error is not None
    assert error.code == LATE[client.name]
    visitor.let_through()
    assert arena.predict(client).json()["pid"] == before


def test_without_a_deadline_the_models_own_holds(arena: Arena, daemon: Daemon, surface: str) -> None:
    """K05: TorchServe answered nothing at all."""
    arena.pack(version="2.0", minWorkers=1, maxWorkers=1, responseTimeout=1, name="hasty", file_name="hasty.mar")
    client = arena.client(surface, daemon)
    client.register("hasty.mar", initial_workers=1)
    running = arena.send(client, "hold", model="hasty")
    visitor = arena.gate.wait_visitor()
    waiting = arena.send(client, model="hasty")
    for call in (running, waiting):
        error = call.answer().error
        assert error is not None
        assert error.code == LATE[surface]
        assert error.reason == ("DEADLINE" if call is running else "DEADLINE_IN_QUEUE")
    visitor.let_through()


@pytest.mark.parametrize("timeout", [1e-9, 0.0, -1.0, -1e9])
def test_a_deadline_already_over_is_exceeded(arena: Arena, daemon: Daemon, timeout: float) -> None:
    """K07."""
    client = arena.client("grpc", daemon)
    assert isinstance(client, GrpcSurface)
    request = client.messages.PredictionsRequest(model_name="zoo", input={"data": b'{"id": "never"}'})
    with pytest.raises(grpc.RpcError) as late:
        client.inference.Predictions(request, timeout=timeout)
    assert error_of(late.value).code == "DEADLINE_EXCEEDED"
    arena.predict(client).json()


def test_a_deadline_in_a_hundred_years_is_none(arena: Arena, client: Client) -> None:
    """K07: the model's response timeout caps it."""
    arena.predict(client, timeout=3.2e9 if client.name == "grpc" else 3_153_600_000).json()


@pytest.mark.parametrize("value", ["abc", "nan", "inf", "", "1e400", "-1", "1s", "0x10", "1 2"])
def test_a_deadline_that_is_no_number_of_seconds_is_a_bad_request(arena: Arena, daemon: Daemon, value: str) -> None:
    answer = _with_headers(arena, daemon, {"Request-Timeout": value})
    assert answer == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Request-Timeout": "30"}, 200),
        ({"Request-Timeout": "2.5"}, 200),
        ({"Request-Timeout": "0.000001"}, 504),
        ({"grpc-timeout": "30S"}, 200),
        ({"grpc-timeout": "500000m"}, 200),
        ({"grpc-timeout": "1n"}, 504),
        ({"grpc-timeout": "30"}, 400),
        ({"grpc-timeout": "abcS"}, 400),
        ({"grpc-timeout": "123456789S"}, 400),
    ],
)
def test_a_rest_client_gives_a_deadline_in_a_header(
    arena: Arena, daemon: Daemon, headers: dict[str, str], status: int
) -> None:
    assert _with_headers(arena, daemon, headers) == status


def _with_headers(arena: Arena, daemon: Daemon, headers: dict[str, str]) -> int:
    client = arena.client("rest", daemon)
    assert isinstance(client, RestSurface)
    request = arena.ledger.sent()
    body = json.dumps({"id": request}).encode()
    answer = client.request("POST", "/predictions/zoo", body, {"Content-Type": "application/json", **headers})
    arena.ledger.answered(request, echo=request if answer.error is None else None, code=answer.status)
    return answer.status
