"""Batching by cost as a client sees it: who is batched with whom, over gRPC and REST."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faults.arena import Client, wait_workers
from harness.archives import pack_model
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.gate import Gate
from harness.surfaces import SURFACES, Answer, Crowd, GrpcSurface, RestSurface

SIZE = 4


class Bench:
    """A model whose worker is kept at a gate while requests gather."""

    def __init__(self, daemon: Daemon, client: Client, gate: Gate, crowd: Crowd) -> None:
        self.daemon, self.client, self.crowd = daemon, client, crowd
        self.asked: dict[str, Future[Answer]] = {}
        self.ask("first", "", gate=gate.address)
        self.visitor = gate.wait_visitor()

    def ask(self, name: str, text: str, **more: Any) -> None:
        """Sends a request and sees it wait, so that the order of arrival is known."""
        body = json.dumps({"name": name, "text": text, **more}).encode()
        self.asked[name] = self.crowd.call(self.client.predict, "together", body)

    def gather(self, *names: str, long: str = "") -> None:
        """Requests that wait behind one at the gate: those whose names stand in `long` have long texts."""
        for count, name in enumerate(names, 1):
            self.ask(name, "many words " * 100 if name in long else "one or two")
            self.wait_pending(count)

    def wait_pending(self, count: int) -> None:
        with RestSurface(self.daemon) as observer:
            eventually(lambda: _pending(observer) == count)

    def batches(self) -> set[str]:
        """Lets the worker go on; the batches that it runs then."""
        self.visitor.let_through()
        answers = [future.result(60).json() for name, future in self.asked.items() if name != "first"]
        return {"".join(answer["batch"]) for answer in answers}


def _pending(observer: RestSurface) -> int:
    [described] = observer.describe("together").json()
    return int(described["jobQueueStatus"]["pendingRequests"])


@contextmanager
def held(folder: Path, surface: str, **settings: Any) -> Iterator[Bench]:
    """A worker that stands at the gate, with a batch of one."""
    given = {"batchSize": SIZE, "maxBatchDelay": 50, "minWorkers": 1, "maxWorkers": 1, **settings}
    entry = pack_model(folder, "together", **given)
    with (
        Daemon(folder, store=folder / "store", models=(entry,)) as daemon,
        SURFACES[surface](daemon) as client,
        Gate(folder / "gate") as gate,
        Crowd(16) as crowd,
    ):
        wait_workers(client, 1, "together")
        yield Bench(daemon, client, gate, crowd)


def test_texts_of_like_length_run_together(tmp_path: Path, surface: str) -> None:
    with held(tmp_path, surface) as bench:
        bench.gather(*"aBcDeFgH", long="BDFH")
        assert bench.batches() == {"aceg", "BDFH"}


def test_none_keeps_the_order_of_arrival(tmp_path: Path, surface: str) -> None:
    with held(tmp_path, surface, batchCost="none") as bench:
        bench.gather(*"aBcDeFgH", long="BDFH")
        assert bench.batches() == {"aBcD", "eFgH"}


def test_a_budget_bounds_the_padded_batch(tmp_path: Path, surface: str) -> None:
    with held(tmp_path, surface, batchCost="bytes", batchCostBudget=2600) as bench:
        bench.gather(*"aBcDeF", long="BDF")
        assert bench.batches() == {"ace", "BD", "F"}


def test_a_client_that_knows_its_cost_says_it(tmp_path: Path) -> None:
    """By a header over REST, by metadata over gRPC: what the texts look like does not count then."""
    with held(tmp_path, "grpc") as bench, GrpcSurface(bench.daemon) as grpc, RestSurface(bench.daemon) as rest:

        def over_grpc(name: str, cost: str) -> Answer:
            body = json.dumps({"name": name, "text": ""}).encode()
            request = grpc.messages.PredictionsRequest(model_name="together", input={"data": body})
            metadata = (("torchd-cost", cost),)
            return Answer(grpc.inference.Predictions(request, timeout=60, metadata=metadata).prediction)

        def over_rest(name: str, cost: str) -> Answer:
            body = json.dumps({"name": name, "text": ""}).encode()
            headers = {"Content-Type": "application/octet-stream", "Torchd-Cost": cost}
            return rest.request("POST", "/predictions/together", body, headers)

        for count, name in enumerate("aBcDeFgH", 1):
            way = over_grpc if count <= 4 else over_rest
            bench.asked[name] = bench.crowd.call(way, name, "400" if name.isupper() else "8")
            bench.wait_pending(count)
        assert bench.batches() == {"aceg", "BDFH"}


@pytest.mark.parametrize("value", ["words", 7])
def test_a_key_that_is_none_is_refused_by_name(tmp_path: Path, value: object) -> None:
    pack_model(tmp_path, "together", batchCost=value)
    with Daemon(tmp_path, store=tmp_path / "store", models=()) as daemon, GrpcSurface(daemon) as client:
        refused = client.register("together.mar")
        assert refused.error is not None
        assert "batchCost: " in refused.error.message
