"""Workers that die, hang or lie, daemons that die, clients that leave: what it costs, checked by the ledger."""

from __future__ import annotations

import http.client
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import psutil
import pytest
from faults.arena import Arena, Call, Client, wait_workers, worker_pids
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.surfaces import Answer

ZOO = ("zoo=zoo-1.0.mar",)
DIED = {"grpc": "UNAVAILABLE", "rest": 500}


def pending(client: Client) -> int:
    """Requests that wait in the model's queue."""
    [description] = client.describe("zoo").json()
    return int(description["jobQueueStatus"]["pendingRequests"])


@contextmanager
def serving(
    arena: Arena, surface: str, *arguments: str, workers: int = 1, **settings: Any
) -> Iterator[tuple[Daemon, Client]]:
    """A daemon whose workers of the zoo are ready, and a client of it."""
    arena.pack(minWorkers=workers, maxWorkers=workers, **settings)
    with arena.daemon(*arguments, models=ZOO) as daemon:
        client = arena.client(surface, daemon)
        wait_workers(client, workers)
        yield daemon, client


def test_a_worker_killed_in_mid_request_costs_that_request_alone(arena: Arena, surface: str) -> None:
    """W01, P06: a typed error at once; the queue goes to the next worker; the model serves again."""
    with serving(arena, surface) as (_, client):
        held = arena.send(client, "hold")
        victim = arena.gate.wait_visitor()
        queued = [arena.send(client) for _ in range(6)]
        eventually(lambda: pending(client) >= len(queued) - 1)  # one may have been sent ahead
        arena.nemesis.kill(victim.pid)
        error = held.answer().error
        assert error is not None
        assert error.code == DIED[surface]
        assert victim.request == held.id
        answers = [call.answer().json() for call in queued]
        assert {answer["pid"] for answer in answers}.isdisjoint({victim.pid})
        arena.predict(client).json()
        [worker] = client.describe("zoo").json()[0]["workers"]
        assert worker["status"] == "READY"
        history = arena.ledger.history()
        ended = next(event.at for event in history if getattr(event, "code", "OK") == DIED[surface])
        # The client hears of it when the worker is dead, not when the next one is ready.
        assert all(event.at > ended for event in arena.ledger.executed() if event.id in {call.id for call in queued})


def test_a_worker_killed_while_idle_costs_nothing(arena: Arena, surface: str) -> None:
    """W02."""
    with serving(arena, surface) as (_, client):
        first = arena.predict(client).json()["pid"]
        arena.nemesis.kill(first)
        assert arena.predict(client).json()["pid"] != first


@pytest.mark.parametrize("do", ["segv", "abort", "fpe", "_exit", "half_frame", "close_fds", "garbage"])
def test_every_way_to_die_is_a_typed_error_and_the_model_serves_again(arena: Arena, do: str) -> None:
    """W07, W11, W12: a signal, an exit status of 0, half a frame, a lie on the wire."""
    with serving(arena, "grpc") as (_, client):
        before = arena.predict(client).json()["pid"]
        error = arena.predict(client, do).error
        assert error is not None
        assert error.code == "UNAVAILABLE"
        assert error.reason
        assert error.reason != "INTERNAL"
        assert arena.predict(client).json()["pid"] != before


def test_the_last_failure_can_be_read(arena: Arena) -> None:
    """P26: which signal, and the last words on stderr."""
    with serving(arena, "grpc") as (_, client):
        arena.predict(client, "print").json()
        arena.predict(client, "segv")
        arena.predict(client).json()
        request = client.management_messages.DescribeModelRequest(model_name="zoo")  # type: ignore[union-attr]
        [description] = client.management.DescribeModel(request, timeout=60).models  # type: ignore[union-attr]
        failure = description.last_failure
        assert failure.kind == "WorkerDied"
        assert "SIGSEGV" in failure.message
        assert any("err" in line for line in failure.stderr)


def test_a_worker_killed_while_it_loads_does_not_lose_who_waits(arena: Arena, surface: str) -> None:
    """W03: it counts as a failed load; requests go on waiting."""
    arena.pack(handler={"load_gate": arena.gate.address})
    with arena.daemon() as daemon:
        client = arena.client(surface, daemon)
        client.register("zoo-1.0.mar", initial_workers=1, synchronous=False)
        first = arena.gate.wait_visitor()
        waiting = arena.send(client)
        arena.nemesis.kill(first.pid)
        second = arena.gate.wait_visitor()
        assert second.pid != first.pid
        assert not waiting.is_answered
        second.let_through()
        assert waiting.answer().json()["pid"] == second.pid


def test_a_worker_killed_while_its_batch_fills_loses_nobody(arena: Arena, surface: str) -> None:
    """W04: TorchServe lost these without a word."""
    with serving(arena, surface, batchSize=8, maxBatchDelay=3000, batchWait="full") as (_, client):
        [idle] = worker_pids(client)
        calls = [arena.send(client) for _ in range(3)]
        eventually(lambda: pending(client) == len(calls))
        arena.nemesis.kill(idle)
        assert all(call.answer().json()["pid"] != idle for call in calls)


def test_a_hung_worker_is_replaced_and_its_late_answer_reaches_nobody(arena: Arena, surface: str) -> None:
    """W05, W06: SIGSTOP in mid-request."""
    with serving(arena, surface, responseTimeout=2) as (_, client):
        held = arena.send(client, "hold")
        victim = arena.gate.wait_visitor()
        arena.nemesis.stop(victim.pid)
        victim.let_through()
        error = held.answer().error
        assert error is not None
        assert error.code in ("DEADLINE_EXCEEDED", 500, 504)
        victim_process = psutil.Process(victim.pid)
        assert psutil.wait_procs([victim_process], timeout=30)[1] == []
        assert arena.predict(client, timeout=30).json()["pid"] != victim.pid


def test_a_loop_that_holds_the_gil_is_ended_from_outside(arena: Arena) -> None:
    """W14, W15: the kill does not need the worker's help."""
    with serving(arena, "grpc", responseTimeout=2) as (_, client):
        before = arena.predict(client).json()["pid"]
        error = arena.predict(client, "loop_in_c").error
        assert error is not None
        assert error.code == "DEADLINE_EXCEEDED"
        assert psutil.wait_procs([psutil.Process(before)], timeout=30)[1] == []
        arena.predict(client, timeout=30).json()


def test_what_a_handler_forked_goes_with_its_worker(arena: Arena) -> None:
    """W16: death is seen although a child holds the socket open, and the child does not stay."""
    with serving(arena, "grpc") as (_, client):
        parent = arena.predict(client, "fork").json()["pid"]
        [child] = psutil.Process(parent).children()
        held = arena.send(client, "hold")
        arena.gate.wait_visitor()
        arena.nemesis.kill(parent)
        error = held.answer(20).error
        assert error is not None
        assert error.code == "UNAVAILABLE"
        assert psutil.wait_procs([child], timeout=20)[1] == []
        arena.predict(client).json()


def test_a_worker_that_ignores_sigterm_does_not_hold_up_the_end(arena: Arena, surface: str) -> None:
    """W19: the model goes, and so does the process."""
    with serving(arena, surface) as (_, client):
        pid = arena.predict(client, "ignore_sigterm").json()["pid"]
        process = psutil.Process(pid)
        assert client.unregister("zoo").error is None
        assert psutil.wait_procs([process], timeout=20)[1] == []


def test_a_killed_daemon_leaves_no_process(arena: Arena) -> None:
    """P15, D05, D06: idle, busy, holding the GIL, stopped, or with children of their own."""
    with serving(arena, "grpc", workers=4) as (daemon, client):
        leaving = [arena.send_and_leave(client, "hold"), arena.send_and_leave(client, "hold")]
        stopped, _ = arena.gate.wait_visitor(), arena.gate.wait_visitor()
        leaving.append(arena.send_and_leave(client, "loop_in_c"))
        eventually(lambda: leaving[-1].id in {event.id for event in arena.ledger.executed()})
        arena.predict(client, "fork").json()
        arena.nemesis.stop(stopped.pid)
        processes = daemon.children()
        assert len(processes) >= 5
        arena.ledger.fault(daemon.pid, "SIGKILL")
        assert daemon.kill() == -signal.SIGKILL
        for request in leaving:
            request.leave()
        assert psutil.wait_procs(processes, timeout=10)[1] == []


def test_sigterm_under_load_loses_nothing_that_was_accepted(arena: Arena, surface: str) -> None:
    """P14, D01: every request is answered, or refused before anybody ran it. The ledger says which."""
    enough, stop = threading.Event(), threading.Event()
    answered = itertools.count(1)

    def keep_asking(index: int) -> None:
        client = arena.client(surface, daemon)
        while not stop.is_set():
            answer = arena.predict(client, "sleep", ms=5)
            if answer.error is None and answer.status == 200 and next(answered) >= 60:
                enough.set()
            if answer.status == 0 or answer.error is not None:
                return

    with serving(arena, surface, workers=2) as (daemon, _), ThreadPoolExecutor(12) as crowd:
        callers = [crowd.submit(keep_asking, index) for index in range(12)]
        try:
            assert enough.wait(60)
            assert daemon.stop() == 0
        finally:
            stop.set()
        for caller in callers:
            caller.result(60)


def test_work_in_hand_is_finished_before_the_daemon_leaves(arena: Arena, surface: str) -> None:
    """P14: what runs and what waits is answered; the newcomer is told that it is too late."""
    with serving(arena, surface) as (daemon, client):
        running = arena.send(client, "hold")
        visitor = arena.gate.wait_visitor()
        waiting = [arena.send(client) for _ in range(3)]
        eventually(lambda: pending(client) == 3)
        daemon.signal(signal.SIGTERM)
        refusal = first_refusal(arena, client)
        assert refusal.error is not None
        assert refusal.error.code == {"grpc": "UNAVAILABLE", "rest": 503}[surface]
        assert not running.is_answered
        visitor.let_through()
        assert running.answer().json()["pid"] == visitor.pid
        assert all(call.answer().json() for call in waiting)
        assert daemon.wait() == 0


def first_refusal(arena: Arena, client: Client) -> Answer:
    """Keeps sending until somebody is turned away: from then on the daemon drains."""
    newcomers: list[Call] = []

    def turned_away() -> list[Answer]:
        answers = [call.answer() for call in newcomers if call.is_answered]
        newcomers.append(arena.send(client))
        return answers

    return eventually(turned_away, what="a refusal")[0]


def test_the_grace_has_an_end(arena: Arena, surface: str) -> None:
    """D02: a handler that never ends cannot keep the daemon; its client is told."""
    with serving(arena, surface, "--drain-grace", "1") as (daemon, client):
        held = arena.send(client, "hold")
        visitor = arena.gate.wait_visitor()
        arena.ledger.fault(visitor.pid, "drained")
        assert daemon.stop() == 0
        error = held.answer().error
        assert error is not None
        assert error.code in ("UNAVAILABLE", 500, 503)


def test_a_second_signal_ends_it_at_once(arena: Arena) -> None:
    """D03: and still no process is left."""
    with serving(arena, "grpc", "--drain-grace", "600") as (daemon, client):
        held = arena.send(client, "hold")
        visitor = arena.gate.wait_visitor()
        processes = daemon.children()
        arena.ledger.fault(visitor.pid, "drained")
        daemon.signal(signal.SIGTERM)
        first_refusal(arena, client)
        daemon.signal(signal.SIGTERM)
        daemon.wait(30)
        held.answer()
        assert psutil.wait_procs(processes, timeout=10)[1] == []


def test_clients_that_leave_never_cost_a_worker(arena: Arena, surface: str) -> None:
    """K01, K02, K03, P09: who waited is never executed, who runs is told, and the worker stays."""
    with serving(arena, surface) as (_, client):
        [before] = worker_pids(client)
        running = arena.send_and_leave(client, "until_cancelled")
        visitor = arena.gate.wait_visitor()
        assert visitor.request == running.id
        waiting = [arena.send_and_leave(client) for _ in range(8)]
        eventually(lambda: pending(client) >= len(waiting) - 1)
        for request in waiting:
            request.leave()
        eventually(lambda: pending(client) == 0)
        running.leave()
        visitor.wait_gone()
        assert arena.ledger.told() == {running.id}
        assert arena.predict(client).json()["pid"] == before
        assert {event.id for event in arena.ledger.executed()}.isdisjoint({request.id for request in waiting})


def test_a_handler_that_does_not_listen_runs_to_its_end_and_stays(arena: Arena, surface: str) -> None:
    """K02: TorchServe killed the worker and loaded the model again."""
    with serving(arena, surface) as (_, client):
        running = arena.send_and_leave(client, "hold")
        visitor = arena.gate.wait_visitor()
        running.leave()
        queued = arena.send(client)
        visitor.let_through()
        assert queued.answer().json()["pid"] == visitor.pid


def test_no_answer_goes_to_the_wrong_caller(arena: Arena, surface: str) -> None:
    """N10, P05: many callers, batches, clients that leave and a worker that dies, all at once."""
    with serving(arena, surface, workers=2, batchSize=4, maxBatchDelay=20) as (_, client):
        victim = min(worker_pids(client))
        calls = []
        for number in range(240):
            if number % 12 == 5:
                arena.send_and_leave(client, "sleep", ms=5).leave()
            if number == 120:
                arena.nemesis.kill(victim)
            calls.append(arena.send(client, "sleep", ms=number % 7))
        answers = [call.answer() for call in calls]
        assert (
            sum(answer.error is None for answer in answers) >= len(calls) - 16
        )  # two batches of 4 may be in its hands
        wait_workers(client, 2)


def test_a_stopped_daemon_has_let_go_of_everything(arena: Arena) -> None:
    """P21: what a model brought, in descriptors, threads, processes and files, goes with it."""
    arena.pack(minWorkers=0)
    with arena.daemon() as daemon:
        client = arena.client("grpc", daemon)
        process = psutil.Process(daemon.pid)

        def live() -> None:
            client.register("zoo-1.0.mar", initial_workers=2)
            arena.predict(client).json()
            arena.predict(client, "_exit")
            arena.predict(client).json()
            client.unregister("zoo")

        def is_back(before: tuple[int, int, int] | None = None) -> tuple[int, int, int] | None:
            """Descriptors, threads and tasks, once no worker is left and they are not more than `before`."""
            now = process.num_fds(), process.num_threads(), _tasks(daemon)
            if process.children(recursive=True):
                return None
            return now if before is None or all(have <= had for have, had in zip(now, before, strict=True)) else None

        live()  # what is made once stays
        descriptors, threads, tasks = eventually(is_back)
        for _ in range(3):
            live()
        eventually(lambda: is_back((descriptors, threads + 1, tasks)))
        assert os.path.exists(f"/proc/{daemon.pid}")


def _tasks(daemon: Daemon) -> int:
    """The daemon's asyncio tasks, as it counts them itself."""
    connection = http.client.HTTPConnection(*daemon.host_and_port("metrics"))
    with closing(connection):
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("torchd_tasks "))))
