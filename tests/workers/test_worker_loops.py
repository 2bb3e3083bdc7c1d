"""The step loop and the event loop of a real worker process, with the test at the daemon's end of its socket."""

from __future__ import annotations

import json

import pytest

from torchd_protos.frames import (
    CHUNK_OVERHEAD,
    STREAM_WINDOW,
    Batch,
    Call,
    Cancel,
    Credit,
    Failure,
    Header,
    Item,
    Loaded,
    Part,
    Reply,
    Settings,
    Unload,
)
from torchd_workers.channel import HELD_BYTES, RunningRequest
from torchd_workers.context import Context, RequestProcessor
from torchd_workers.metrics import Metrics


def wish(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_each_batch_that_joins_is_begun_on_its_own(loaded) -> None:
    """P04: what is handed back when the worker dies."""
    worker = loaded("tokens", loop="step")
    first = worker.send_batch(wish(tokens=10**6, step_seconds=0.01))
    worker.until_begun(first)
    second = worker.send_batch(wish(tokens=1), first=2)
    worker.until_begun(second)
    while (reply := worker.until(Reply)).request != 2:
        assert reply.more
    assert not reply.more
    assert not reply.end_of_step
    assert {header.name: header.value for header in reply.headers} == {"ts_stream_next": "false"}


def test_a_request_that_is_cancelled_before_its_first_step_never_reaches_the_handler(loaded) -> None:
    """K01."""
    worker = loaded("tokens", loop="step")
    worker.send_batch(wish(tokens=3, step_seconds=0.3))
    worker.until_begun()
    worker.send_batch(wish(tokens=1), first=2)
    worker.send(Cancel(2))
    failure = worker.until(Failure)
    assert (failure.request, failure.kind) == (2, "Cancelled")
    assert max(json.loads(bytes(said.body))["live"] for said in worker.seen if isinstance(said, Reply)) == 1


def test_a_last_answer_stays_behind_the_chunks_that_wait_for_a_slow_reader(loaded) -> None:
    """K08: the other request is not held up, and this one gets everything in order when it reads."""
    size = STREAM_WINDOW // 4
    worker = loaded("tokens", loop="step")
    worker.send_batch(wish(tokens=12, size=size))
    worker.until_begun()
    worker.send_batch(wish(tokens=30), first=2)
    got = []
    while True:
        reply = worker.until(Reply)
        if reply.request == 1:
            got.append(json.loads(bytes(reply.body))["token"])
        elif not reply.more:
            break
    assert got == [1, 2, 3, 4], "one window"
    while len(got) < 12:
        worker.send(Credit(1, size + CHUNK_OVERHEAD + 100))
        got.append(json.loads(bytes((last := worker.until(Reply)).body))["token"])
    assert got == list(range(1, 13))
    assert not last.more


def test_a_reader_that_leaves_with_its_last_answer_held_gives_its_place_back(loaded) -> None:
    worker = loaded("tokens", loop="step")
    worker.send_batch(wish(tokens=6, size=STREAM_WINDOW // 2))
    worker.send_batch(wish(tokens=30), first=2)
    while (reply := worker.until(Reply)).request != 2 or reply.more:
        pass
    worker.send(Cancel(1))
    ending = worker.until(Reply, Failure)
    assert ending.request == 1
    assert isinstance(ending, Failure) or not ending.more


def test_what_is_kept_for_a_slow_reader_is_bounded(loaded) -> None:
    worker = loaded("tokens", loop="step")
    worker.send_batch(wish(tokens=10**6, size=HELD_BYTES // 4))
    failure = worker.until(Failure)
    assert failure.kind == "ResponseTooLarge"
    assert "too slowly" in failure.message


def test_settings_and_unload_are_heard_between_steps(loaded) -> None:
    worker = loaded("tokens", loop="step")
    worker.send_batch(wish(tokens=2, step_seconds=0.1))
    worker.send(Settings(1))
    while worker.until(Reply).more:
        pass
    worker.send(Unload())
    assert worker.end()[0] == 0


def test_an_async_worker_starts_each_request_as_it_comes_and_unloads(loaded) -> None:
    worker = loaded("coroutines", loop="async")
    worker.send_batch(wish(seconds=0.3), wish(seconds=0.3))
    quick = worker.send_batch(wish(), first=3)
    worker.until_begun(quick)
    assert worker.until(Reply).request == 3
    assert {worker.until(Reply).request, worker.until(Reply).request} == {1, 2}
    worker.send(Unload())
    assert worker.end()[0] == 0


def test_a_cancel_that_comes_with_its_request_is_answered(loaded) -> None:
    worker = loaded("coroutines", loop="async")
    item = Item(1, 60_000, Call(request_id="r", parts=[Part("body", body=wish(seconds=60))]))
    frames = [Batch(1, [item]), Cancel(1)]
    for frame in frames:
        worker.send(frame)
    failure = worker.until(Failure)
    assert (failure.request, failure.kind) == (1, "Cancelled")
    worker.send_batch(wish(), first=2)
    assert worker.until(Reply).request == 2


def test_handlers_know_the_names_of_the_sequence_headers(loaded) -> None:
    """torchserve.md, section 13 #22."""
    names = {"sequence_header_id": "x-s", "sequence_header_start": "x-start", "sequence_header_end": "x-end"}
    worker = loaded("running_sum", **names)
    headers = [Header("x-s", "one"), Header("x-start", "true")]
    worker.send(Batch(1, [Item(1, 60_000, Call(request_id="r", headers=headers, parts=[Part("data", body=b"4")]))]))
    reply = worker.until(Reply)
    assert json.loads(bytes(reply.body))["sum"] == 4
    assert reply.headers == [Header("x-s", "one")]


def test_a_context_of_its_own_shares_what_the_handler_keeps() -> None:
    context = Context("m", "folder", {}, 1, None, metrics=Metrics([].append, "m"))
    context.cache = {}
    first = context.for_request({0: "a"}, RequestProcessor({"h": "1"}), RunningRequest(1, 1000))
    second = context.for_request({0: "b"}, RequestProcessor({}), RunningRequest(2, 1000))
    first.cache["x"] = 1
    first.set_response_status(404)
    assert second.cache == {"x": 1}
    assert second.get_response_status(0)[0] == 200
    assert (first.get_request_id(), second.get_request_id()) == ("a", "b")
    assert first.metrics.request_ids == {0: "a"}


SPOILS_ITS_CONTEXT = """\
import threading


class Spoiler:
    def initialize(self, context):
        self.context = context

    def handle(self, data, context):
        context.request_processor = []
        if context is not self.context:  # async handlers get one of their own, which is a copy of this
            self.context.metrics = threading.Lock()
        return ["done"] * len(data)
"""


@pytest.mark.parametrize("loop", ["step", "async"])
def test_a_handler_that_spoils_its_context_has_answers_all_the_same(start, tmp_path, loop) -> None:
    """P01: whatever it has put there, nobody waits for an answer that does not come."""
    (tmp_path / "handler.py").write_text(SPOILS_ITS_CONTEXT)
    worker = start(tmp_path)
    assert worker.load(loop=loop) == Loaded()
    for number in (1, 2):
        worker.send_batch(b"x", first=number)
        assert worker.until(Reply, Failure).request == number
