"""Where an end-to-end test plays: a store, a ledger, a nemesis, a gate, and requests that are written down."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from faults.ledger import Ledger, echo_of
from faults.nemesis import Nemesis
from faults.zoo_archive import pack_zoo, wish
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.gate import Gate
from harness.surfaces import SURFACES, Abandoned, Answer, Crowd, GrpcSurface, RestSurface

DEADLY = {"segv", "abort", "fpe", "_exit", "half_frame", "garbage", "close_fds", "loop", "loop_in_c"}
# How a client's library says that no server took the request, or that it hung up.
HUNG_UP = (ConnectionError, EOFError)

Client = GrpcSurface | RestSurface


class Call:
    """One request on its way, under its own id."""

    def __init__(self, request: str, future: Future[Answer]) -> None:
        self.id = request
        self._future = future

    def answer(self, timeout: float = 60.0) -> Answer:
        """Its answer, once it is there."""
        return self._future.result(timeout)

    @property
    def is_answered(self) -> bool:
        """Whether the answer is there."""
        return self._future.done()


class Arena:
    """Everything one test needs around a daemon; every request through it is in the ledger. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.store.mkdir()
        self.ledger = Ledger(folder / "executions")
        self.nemesis = Nemesis(self.ledger)
        self.gate = Gate(folder / "gate")
        self._crowd = Crowd(48)
        self._clients: list[Client] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.__exit__(kind, error, trace)
        self._crowd.close()
        for client in self._clients:
            client.close()

    def pack(self, **settings: Any) -> str:
        """Packs a zoo into the store; returns its file name."""
        return pack_zoo(self.store, self.ledger.executions, **settings)

    def daemon(self, *arguments: str, models: tuple[str, ...] = (), **options: Any) -> Daemon:
        """A daemon on this store, not started yet."""
        return Daemon(self.folder, store=self.store, models=models, arguments=arguments, **options)

    def client(self, surface: str, daemon: Daemon) -> Client:
        """A client of "grpc" or "rest"; closed with the arena."""
        client = SURFACES[surface](daemon)
        self._clients.append(client)
        return client

    def send(
        self, client: Client, do: str = "echo", *, model: str = "zoo", timeout: float | None = None, **more: Any
    ) -> Call:
        """Sends one request; the answer is written down when it comes. `hold` requests go to this arena's gate."""
        if do in ("hold", "until_cancelled"):
            more["gate"] = self.gate.address
        request = self.ledger.sent(timeout=timeout, deadly=do in DEADLY)
        return Call(
            request, self._crowd.call(self._predict, client, model, request, wish(request, do, **more), timeout)
        )

    def predict(self, client: Client, do: str = "echo", **more: Any) -> Answer:
        """Sends one request and waits for its answer."""
        return self.send(client, do, **more).answer()

    def send_and_leave(self, client: Client, do: str = "echo", *, model: str = "zoo", **more: Any) -> Leaving:
        """Sends one request whose client will give up."""
        if do in ("hold", "until_cancelled"):
            more["gate"] = self.gate.address
        request = self.ledger.sent()
        return Leaving(self.ledger, request, client.abandon(model, wish(request, do, **more)))

    def _predict(self, client: Client, model: str, request: str, body: bytes, timeout: float | None) -> Answer:
        try:
            answer = client.predict(model, body, timeout=timeout)
        except HUNG_UP:
            self.ledger.refused(request)
            return Answer(status=0)
        error = answer.error
        if error is None:
            self.ledger.answered(request, echo=echo_of(answer.body))
        elif error.code == grpc.StatusCode.UNAVAILABLE.name and not error.reason:
            self.ledger.refused(request)
        else:
            self.ledger.answered(request, code=error.code, reason=error.reason)
        return answer


class Leaving:
    """A request whose client will go away."""

    def __init__(self, ledger: Ledger, request: str, abandoned: Abandoned) -> None:
        self.id = request
        self._ledger = ledger
        self._abandoned = abandoned

    def leave(self) -> None:
        """Cancels, or resets the connection."""
        self._ledger.given_up(self.id)
        self._abandoned.leave()


def wait_workers(client: Client, count: int, model: str = "zoo") -> set[int]:
    """The pids of a model's workers, once so many are ready: a daemon is ready before its workers are."""
    return eventually(lambda: pids if len(pids := worker_pids(client, model)) == count else set())


def wait_running(client: GrpcSurface, model: str, count: int) -> None:
    """Returns once the workers of a model run so many requests together."""
    request = client.management_messages.DescribeModelRequest(model_name=model)

    def running() -> int:
        [description] = client.management.DescribeModel(request, timeout=60).models
        return sum(worker.running_requests for worker in description.workers)

    eventually(lambda: running() == count)


def worker_pids(client: Client, model: str = "zoo") -> set[int]:
    """The pids of a model's workers that are ready."""
    return {
        worker["pid"]
        for version in client.describe(model, "all").json()
        for worker in version["workers"]
        if worker["status"] == "READY"
    }
