"""SIGTERM in awkward moments: what was accepted is answered, what hangs is ended, and the exit code is 0."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from faults.arena import Arena, Client, wait_workers
from faults.zoo_archive import wish
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.surfaces import Crowd, RestSurface

MEBIBYTE = 1024 * 1024


@contextmanager
def serving(arena: Arena, surface: str, *arguments: str) -> Iterator[tuple[Daemon, Client]]:
    """A daemon with one ready worker of the zoo, and a client of it."""
    arena.pack(minWorkers=1, maxWorkers=1)
    with arena.daemon(*arguments, models=("zoo=zoo-1.0.mar",)) as daemon:
        client = arena.client(surface, daemon)
        wait_workers(client, 1)
        yield daemon, client


def terminate(daemon: Daemon) -> None:
    """SIGTERM; returns when the daemon has begun to drain."""
    daemon.signal(signal.SIGTERM)
    eventually(lambda: "draining" in daemon.log)


def test_an_unregister_call_that_waits_is_finished_and_so_is_what_it_waits_for(arena: Arena, surface: str) -> None:
    """P14: the model is in no registry any more, and yet it has accepted a request."""
    with serving(arena, surface) as (daemon, client), Crowd(1) as crowd:
        held = arena.send(client, "hold")
        visitor = arena.gate.wait_visitor()
        unregistering = crowd.call(client.unregister, "zoo")
        eventually(lambda: client.models().json()["models"] == [])
        terminate(daemon)
        assert not held.is_answered
        visitor.let_through()
        assert held.answer().json()["pid"] == visitor.pid
        assert unregistering.result(60).sentence == 'Model "zoo" unregistered'
        assert daemon.wait() == 0


def test_a_slow_reader_gets_its_whole_answer_within_the_grace(arena: Arena) -> None:
    """The model has answered; the client has not read it yet."""
    with serving(arena, "rest") as (daemon, client):
        assert isinstance(client, RestSurface)
        request = arena.ledger.sent()
        connection = client.connect("inference")
        connection.request("POST", "/predictions/zoo", wish(request, "big", bytes=20 * MEBIBYTE))
        response = connection.getresponse()
        body = bytearray(response.read(MEBIBYTE))
        terminate(daemon)
        pace = threading.Event()
        while piece := response.read(MEBIBYTE):
            body += piece
            pace.wait(0.1)  # two seconds in all, far within the grace of thirty
        connection.close()
        arena.ledger.answered(request, echo=request)
        assert body == request.encode() + b"y" * (20 * MEBIBYTE)
        assert daemon.wait() == 0


def test_the_grace_holds_for_a_worker_that_was_dismissed_before(arena: Arena, surface: str) -> None:
    """D02: scaled to nothing, its handler hangs; unload_grace would give it 30 s."""
    with serving(arena, surface, "--drain-grace", "1") as (daemon, client):
        held = arena.send(client, "hold")
        visitor = arena.gate.wait_visitor()
        client.scale("zoo", 0, synchronous=False)
        eventually(lambda: client.describe("zoo").json()[0]["workers"] == [])
        processes = daemon.children()
        arena.ledger.fault(visitor.pid, "drained")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait(15) == 0
        error = held.answer().error
        assert error is not None
        assert error.code in ("UNAVAILABLE", 500, 503)
        assert psutil.wait_procs(processes, timeout=10)[1] == []
