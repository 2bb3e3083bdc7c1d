"""Sequences with a real handler over REST and both kinds of gRPC call (torchserve.md, sections 1.3, 4.1, 8, 13)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from faults.arena import wait_running, wait_workers, worker_pids
from google.rpc import error_details_pb2
from harness.archives import pack_model
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.surfaces import GrpcSurface, RestSurface, error_of

from torchd_protos.frames import Call
from torchd_server.inference import Inference
from torchd_server.registry import ModelRegistry
from torchd_server.surfaces.sequence_stream import SequenceCall, SequenceStream

PATIENCE = 60.0
ID, START, END = "ts_request_sequence_id", "ts_request_sequence_start", "ts_request_sequence_end"


@contextmanager
def serving(folder: Path, workers: int = 1, model: str = "running_sum", **settings: Any) -> Iterator[Sums]:
    """A daemon with the running sum."""
    given = {"sequenceBatching": True, "maxNumSequence": 4, "maxSequenceJobQueueSize": 5, "maxBatchDelay": 10}
    entry = pack_model(folder, model, **{**given, "minWorkers": workers, "maxWorkers": workers, **settings})
    with Daemon(folder, store=folder / "store", models=(entry,)) as daemon, GrpcSurface(daemon) as client:
        wait_workers(client, workers, model)
        yield Sums(daemon, client, model)


class Sums:
    """A client of the running sum, over everything that can reach it."""

    def __init__(self, daemon: Daemon, client: GrpcSurface, model: str) -> None:
        self.daemon = daemon
        self.client = client
        self.model = model

    def rest(self, body: str, sequence: str = "", **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, document and headers of one POST."""
        connection = HTTPConnection(*self.daemon.host_and_port("inference"), timeout=PATIENCE)
        try:
            named = {**({ID: sequence} if sequence else {}), **headers}
            connection.request("POST", f"/predictions/{self.model}", body, named)
            response = connection.getresponse()
            content = response.read()
            return response.status, json.loads(content), dict(response.getheaders())
        finally:
            connection.close()

    def sum(self, body: str, sequence: str = "", **headers: str) -> float:
        """The sum after one POST that succeeds."""
        status, document, _ = self.rest(body, sequence, **headers)
        assert status == 200, document
        return float(document["sum"])

    def refusal(self, body: str, sequence: str = "", **headers: str) -> str:
        """The reason of one POST that is refused."""
        status, document, found = self.rest(body, sequence, **headers)
        assert status == 503, document
        assert document["message"].startswith(f'Model "{self.model}" has no worker to serve inference request.')
        return next(value for name, value in found.items() if name.lower() == "x-torchd-reason")

    def request(self, body: str, sequence: str | None = None, **flags: bytes) -> Any:
        """A PredictionsRequest."""
        return self.client.messages.PredictionsRequest(
            model_name=self.model, input={"data": body.encode(), **flags}, sequence_id=sequence
        )

    def stream(self, *requests: Any) -> list[Any]:
        """Every answer of one StreamPredictions2 call that sends these and half-closes."""
        return list(self.client.inference.StreamPredictions2(iter(requests), timeout=PATIENCE))


def sums(answers: list[Any]) -> list[float]:
    assert not [answer.status for answer in answers if answer.HasField("status")]
    return [json.loads(answer.prediction)["sum"] for answer in answers]


def reason(answer: Any) -> str:
    """ErrorInfo's reason of an in-band error."""
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in answer.status.details)
    return str(info.reason)


def test_a_sequence_keeps_its_sum_and_stays_with_its_worker(tmp_path: Path) -> None:
    with serving(tmp_path, workers=2, batchSize=4, maxNumSequence=8) as model, ThreadPoolExecutor(8) as crowd:

        def play(name: str) -> tuple[list[float], set[int]]:
            said = [model.rest(str(number), name, **({START: "true"} if number == 1 else {})) for number in range(1, 8)]
            return [document["sum"] for _, document, _ in said], {document["pid"] for _, document, _ in said}

        for totals, pids in crowd.map(play, [f"s{number}" for number in range(8)]):
            assert totals == [1, 3, 6, 10, 15, 21, 28]
            assert len(pids) == 1
        described = model.client.describe(model.model).json()[0]
        assert described["stateful"] is True
        assert described["maxNumSequence"] == 8


def test_without_an_id_the_server_opens_a_sequence_of_its_own(tmp_path: Path) -> None:
    """Section 2.2: ts-seq-<uuid>, with the start header."""
    with serving(tmp_path) as model:
        _, document, headers = model.rest("3")
        assert document["sum"] == 3
        made = headers[ID]
        assert made.startswith("ts-seq-")
        assert model.sum("4", made) == 7


def test_a_stream_is_answered_in_order_with_its_sequence_and_half_close_loses_nothing(tmp_path: Path) -> None:
    """Section 13 #3: TorchServe loses what is pending when the client closes its half."""
    with serving(tmp_path, maxSequenceJobQueueSize=1) as model:
        requests = [
            model.request(str(number), "chat", **({START: b"true"} if number == 1 else {})) for number in range(1, 40)
        ]
        answers = model.stream(*requests)
        assert sums(answers) == [sum(range(1, number + 1)) for number in range(1, 40)]
        assert {answer.sequence_id for answer in answers} == {"chat"}
        answer = model.client.inference.Predictions(model.request("0", "chat"), timeout=PATIENCE)
        assert json.loads(answer.prediction)["sum"] == sum(range(1, 40)), "the sequence outlives the call"
        assert answer.sequence_id == "chat"


def test_a_stream_without_ids_is_one_sequence_that_ends_with_it(tmp_path: Path) -> None:
    with serving(tmp_path, maxNumSequence=1) as model:
        for _ in range(3):
            answers = model.stream(*map(model.request, "123"))
            assert sums(answers) == [1, 3, 6]
            [made] = {answer.sequence_id for answer in answers}
            assert made.startswith("ts-seq-")
            eventually(lambda: model.rest("1", "probe", **{END: "true"})[0] == 200)


def test_one_stream_may_carry_several_sequences(tmp_path: Path) -> None:
    with serving(tmp_path, batchSize=2) as model:
        answers = model.stream(*[model.request("1", name) for name in "abab"])
        assert [(answer.sequence_id, total) for answer, total in zip(answers, sums(answers), strict=True)] == [
            ("a", 1),
            ("b", 1),
            ("a", 2),
            ("b", 2),
        ]


def test_an_error_is_an_answer_of_its_own_and_the_stream_goes_on(tmp_path: Path) -> None:
    with serving(tmp_path) as model:
        answers = model.stream(*[model.request(body, "s") for body in ("1", "raise", "2")])
        assert reason(answers[1]) == "HANDLER_ERROR"
        assert answers[1].sequence_id == "s"
        assert answers[1].status.code == grpc.StatusCode.UNKNOWN.value[0]
        assert sums([answers[0], answers[2]]) == [1, 3]
        nobody = model.client.messages.PredictionsRequest(model_name="nobody", sequence_id="s")
        assert [reason(answer) for answer in model.stream(nobody, nobody)] == ["MODEL_NOT_FOUND"] * 2


def test_the_answers_of_a_stream_come_while_its_client_still_speaks(tmp_path: Path) -> None:
    with serving(tmp_path) as model:
        to_send: SimpleQueue[Any] = SimpleQueue()
        answers = model.client.inference.StreamPredictions2(iter(to_send.get, None), timeout=PATIENCE)
        for number, expected in ((1, 1), (2, 3), (3, 6)):
            to_send.put(model.request(str(number), "s"))
            assert sums([next(answers)]) == [expected]
        to_send.put(None)
        assert list(answers) == []


def test_the_end_of_a_sequence_frees_its_place(tmp_path: Path) -> None:
    """By the header of a request, the entry of an input, or the header of an answer."""
    with serving(tmp_path, maxNumSequence=1) as model:
        assert model.sum("1", "a", **{START: "true"}) == 1
        assert model.refusal("1", "b") == "SEQUENCE_LIMIT"
        assert model.sum("2", "a", **{END: "true"}) == 3
        assert model.sum("1", "b") == 1
        [answer] = model.stream(model.request("4", "b", **{END: b"true"}))
        assert sums([answer]) == [5]
        assert model.sum("1", "c") == 1
        assert model.sum("end", "c") == 1
        assert model.sum("7", "d") == 7


def test_a_sequence_that_is_over_its_limit_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path, maxSequenceJobQueueSize=1) as model, ThreadPoolExecutor(8) as crowd:
        assert model.sum("0", "a") == 0
        running = crowd.submit(model.sum, "1.8", "a")
        wait_running(model.client, model.model, 1)
        waiting = crowd.submit(model.sum, "1", "a")
        eventually(lambda: model.client.describe(model.model).json()[0]["jobQueueStatus"]["pendingRequests"] == 1)
        assert model.refusal("1", "a") == "SEQUENCE_LIMIT"
        assert running.result(PATIENCE) == pytest.approx(1.8)
        assert waiting.result(PATIENCE) == pytest.approx(2.8)


def test_an_idle_sequence_is_closed_and_its_client_told_once(tmp_path: Path) -> None:
    with serving(tmp_path, maxNumSequence=1, sequenceMaxIdleMSec=300) as model:
        assert model.sum("1", "a") == 1
        assert eventually(lambda: model.rest("5", "b")[0] == 200)
        assert model.refusal("2", "a") == "SEQUENCE_CLOSED"
        assert eventually(lambda: model.rest("2", "a", **{START: "true"})[0] == 200)
        assert model.sum("1", "a") == 3


def test_a_sequence_whose_worker_dies_is_lost_and_the_others_go_on(tmp_path: Path) -> None:
    """Section 13 #7: TorchServe's sequence workers never come back."""
    with serving(tmp_path, workers=2, batchSize=2) as model:
        home = {name: model.rest("1", name)[1]["pid"] for name in "abcd"}
        assert len(set(home.values())) == 2
        victim = home["a"]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: victim not in worker_pids(model.client, model.model))
        for name, pid in home.items():
            if pid == victim:
                assert model.refusal("1", name) == "SEQUENCE_LOST"
                assert model.sum("5", name, **{START: "true"}) == 5
            else:
                assert model.sum("1", name) == 2
        wait_workers(model.client, 2, model.model)


def test_a_request_that_kills_its_worker_takes_the_state_of_its_sequence_along(
    tmp_path: Path,
) -> None:
    with serving(tmp_path) as model:
        answers = model.stream(*[model.request(body, "s") for body in ("1", "die", "2")])
        assert sums(answers[:1]) == [1]
        assert [reason(answer) for answer in answers[1:]] == ["WORKER_DIED", "SEQUENCE_LOST"]
        assert sums(model.stream(model.request("4", "s"))) == [4], "it was told once"


def test_a_stream_whose_client_goes_takes_its_requests_back(tmp_path: Path) -> None:
    """K01, K02, K16."""
    with serving(tmp_path) as model:
        call = model.client.inference.StreamPredictions2(
            iter([model.request("0.5", "s") for _ in range(100)]), timeout=PATIENCE
        )
        next(call)
        call.cancel()
        eventually(lambda: model.client.describe(model.model).json()[0]["jobQueueStatus"]["pendingRequests"] == 0)
        assert model.sum("0", "s") <= 2.5


def test_a_stream_ends_when_the_server_drains(tmp_path: Path) -> None:
    """An open call with nothing in it does not keep the server from stopping; what is accepted is answered."""
    with serving(tmp_path) as model:
        to_send: SimpleQueue[Any] = SimpleQueue()
        answers = model.client.inference.StreamPredictions2(iter(to_send.get, None), timeout=PATIENCE)
        to_send.put(model.request("0.9", "s"))
        stopping = threading.Timer(0.3, model.daemon.signal, [signal.SIGTERM])
        stopping.start()
        assert sums([next(answers)]) == [0.9]
        with pytest.raises(grpc.RpcError) as ended:
            next(answers)
        assert error_of(ended.value).reason == "DRAINING"
        to_send.put(None)
        stopping.join()


def test_any_model_answers_a_stream(tmp_path: Path) -> None:
    """Not only stateful ones; the chunks of a streamed answer come in their place."""
    with serving(tmp_path, model="tokens", sequenceBatching=False, continuousBatching=True, batchSize=4) as model:
        answers = model.stream(
            *[model.request(json.dumps({"tokens": number, "step_seconds": 0.2})) for number in (2, 1, 3)]
        )
        assert [json.loads(answer.prediction)["token"] for answer in answers] == [1, 2, 1, 1, 2, 3]
        assert max(json.loads(answer.prediction)["live"] for answer in answers) > 1, "they ran together"


def test_sequences_and_steps_together_let_the_next_request_join_after_the_first_answer(tmp_path: Path) -> None:
    """Section 8: a request of a sequence reaches the handler while the one before it is still being answered."""
    with serving(tmp_path, model="tokens", continuousBatching=True, batchSize=4) as model:
        long, short = ({"tokens": 50, "step_seconds": 0.02}, {"tokens": 2})
        stream = model.client.inference.StreamPredictions(model.request(json.dumps(long), "s"), timeout=PATIENCE)
        next(stream)
        [first, second] = model.stream(model.request(json.dumps(short), "s"))
        assert json.loads(first.prediction)["live"] == json.loads(second.prediction)["live"] == 2
        assert len(list(stream)) == 49


def test_with_job_tickets_only_what_can_begin_is_taken(tmp_path: Path) -> None:
    """Section 4.1: useJobTicket."""
    with (
        serving(tmp_path, sequenceBatching=False, useJobTicket=True) as model,
        ThreadPoolExecutor(1) as crowd,
    ):
        running = crowd.submit(model.sum, "1.9", "s", **{START: "true"})
        wait_running(model.client, model.model, 1)
        assert model.refusal("0", "s") == "NO_TICKET"
        assert running.result(PATIENCE) == pytest.approx(1.9)
        assert model.sum("2", "s", **{START: "true"}) == 2


def test_past_client_timeout_a_request_is_answered(tmp_path: Path) -> None:
    """Section 0 row 7, 13 #11: TorchServe drops it without a word."""
    with serving(tmp_path, sequenceBatching=False, clientTimeoutInMills=200) as model:
        status, document, _ = model.rest("1.9", "s", **{START: "true"})
        assert status == 504, document
        assert model.client.describe(model.model).json()[0]["clientTimeoutInMills"] == 200


def test_a_customized_description_keeps_no_place_of_a_sequence(tmp_path: Path) -> None:
    """P07: it is a sequence of one request, which ends with it."""
    with serving(tmp_path, model="described_sums", maxNumSequence=2) as model:
        rest = RestSurface(model.daemon)
        for _ in range(5):
            described = rest.request("GET", "/models/described_sums?customized=true", port="management")
            assert described.json()[0]["customizedMetadata"] == {"kind": "sums"}
        model.sum("1", "a")
        model.sum("1", "b")


def test_a_stream_remembers_no_name_of_a_model_that_is_not_there() -> None:
    """P07: a client may send as many as it likes."""

    async def nameless() -> AsyncIterator[SequenceCall]:
        for number in range(1000):
            yield SequenceCall(Call(model=f"m{number}"), "own", is_own=True)

    async def read() -> None:
        stream = SequenceStream(Inference(ModelRegistry()))
        async with aclosing(stream.answers(nameless())) as answers:
            refused = [answer.status.code async for answer in answers]
        assert refused == [grpc.StatusCode.NOT_FOUND.value[0]] * 1000
        assert stream._own == set()

    asyncio.run(read())
