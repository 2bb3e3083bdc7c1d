"""Several worker processes that are one worker, with the test at the daemon's end of every rank's socket."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from harness.eventually import eventually

from torchd_protos.frames import Cancel, Failure, LoadFailed, Log, Metric, Progress, Replies, Reply, Settings, Unload
from torchd_workers.aftermath import DEVICE_LOST
from torchd_workers.channel import PROTOCOL_FAILURE

# Only the leader answers: what a call was like on each rank is read from a file of that rank.
NOTES = """\
import json, os, sys


class Rows:
    def initialize(self, context):
        self.group = context.group
        self.rank = self.group.rank
        self.file = open(f"rank{self.rank}", "w", buffering=1)
        prepare(self, context)

    def note(self, *what):
        print(json.dumps(what), file=self.file)

    def handle(self, data, context):
        return answer(self, [bytes(row["body"]).decode() if row else "" for row in data], context)

def prepare(self, context):
    pass

"""

ROWS = """
def answer(self, texts, context):
    context.metrics.add_counter("Calls", 1)
    self.note(texts, list(context.request_ids.values()), [context.is_cancelled(at) for at in range(len(texts))])
    return [f"{self.rank} of {self.group.size}: {text}" for text in texts]
"""

# A text such as "0 raise" is for rank 0.
MISBEHAVE = """
def answer(self, texts, context):
    for text in texts:
        rank, _, act = text.partition(" ")
        if rank in (str(self.rank), "all"):
            if act == "raise":
                raise ValueError(f"no such colour on rank {self.rank}")
            if act == "exit":
                sys.exit(5)
            if act == "die":
                os._exit(3)
            if act == "none":
                return None
            if act == "agree":
                context.agree()
    self.note(texts)
    return texts
"""


def notes(directory: Path, rank: int) -> list[list[object]]:
    """What a rank has noted so far."""
    return [json.loads(line) for line in (directory / f"rank{rank}").read_text().splitlines()]


def test_every_rank_is_called_with_the_same_rows_in_the_same_order(grouped, tmp_path) -> None:
    group = grouped(NOTES + ROWS, size=3)
    for first in range(1, 401, 2):
        answers = group.leader.run(b"%d" % first, b"%d" % (first + 1), first=first)
        assert [bytes(answer.body) for answer in answers] == [b"0 of 3: %d" % first, b"0 of 3: %d" % (first + 1)]
    group.unload()
    assert len(notes(tmp_path, 0)) == 200
    assert notes(tmp_path, 0) == notes(tmp_path, 1) == notes(tmp_path, 2)


def test_a_follower_sends_its_own_metrics_and_neither_answers_nor_times(grouped) -> None:
    """As in TorchServe, which reads the metrics of every rank and the answers of rank 0."""
    group = grouped(NOTES + ROWS)
    group.leader.ask(b"a")
    (follower,) = group.followers
    assert follower.until(Metric).name == "Calls"
    group.leader.send(Unload())
    with pytest.raises(EOFError):
        follower.until(Reply, Failure, Replies, Metric)


def test_a_large_body_comes_whole_to_every_rank(grouped, tmp_path) -> None:
    source = "def answer(self, texts, context):\n    self.note(len(texts[0]))\n    return texts\n"
    group = grouped(NOTES + source, size=3)
    body = b"x" * 5_000_000
    assert group.leader.ask(body).body == body
    group.unload()
    assert [notes(tmp_path, rank) for rank in range(3)] == [[[5_000_000]]] * 3


STEPS = """
def answer(self, texts, context):
    made = self.__dict__.setdefault("made", {})
    ids = list(context.request_ids.values())
    for request, text in zip(ids, texts):
        made.setdefault(request, int(text or 0))
        made[request] -= 1
    self.note(ids, texts, [context.time_remaining(at) for at in range(len(ids))])
    left = [made[request] for request in ids]
    if self.rank == 0:  # only the leader's word counts
        context.stopping_criteria = [lambda value, left=one: left <= 0 for one in left]
    return [f"{one};" for one in left]
"""


def test_every_step_has_the_same_live_requests_on_every_rank(grouped, tmp_path) -> None:
    group = grouped(NOTES + STEPS, size=3, loop="step")
    leader = group.leader
    leader.send_batch(b"1000000", b"3", first=1)
    leader.until_begun()
    for number in range(3, 30):
        leader.send_batch(b"%d" % (number % 4 + 1), first=number)
        if number == 17:
            leader.send(Cancel(1))
            leader.send_batch(b"1000000", first=1000)
        while (reply := leader.until(Reply)).request != number or reply.more:
            pass
    leader.send(Cancel(1000))
    while leader.until(Reply, Failure).request != 1000 or not isinstance(leader.seen[-1], Failure):
        pass
    group.unload()
    assert len(notes(tmp_path, 0)) > 30
    assert notes(tmp_path, 0) == notes(tmp_path, 1) == notes(tmp_path, 2)


AGREES = """
def answer(self, texts, context):
    before = None
    while True:
        now = context.is_cancelled(0), context.time_remaining(0)
        if now != before:
            self.note(*now)
        before = now
        if now[0]:
            return texts
        context.agree()
"""


def test_agree_brings_the_leaders_cancels_and_clock_to_every_rank_at_the_same_point(grouped, tmp_path) -> None:
    """The lead's contract: no rank stops alone while another waits in a collective."""
    group = grouped(NOTES + AGREES)
    group.leader.send_batch(b"a")
    group.leader.until_begun()
    group.leader.send(Cancel(1))
    assert group.leader.answers()[0].kind == "Cancelled"
    group.unload()
    assert notes(tmp_path, 0) == notes(tmp_path, 1)
    assert notes(tmp_path, 0)[-1][0] is True
    assert [seen[0] for seen in notes(tmp_path, 0)[:-1]] == [False] * (len(notes(tmp_path, 0)) - 1)


TASKS = """
def prepare(self, context):
    if self.rank:
        self.group.serve("double", self.double)

def double(self, arguments, body):
    self.note("double", arguments, bytes(body).decode(), self.group.agree([False] * arguments["flags"]))

Rows.double = double

def answer(self, texts, context):
    for text in texts:
        self.group.call("double", {"flags": 2}, text.encode())
        self.note(self.group.agree([True, False]))
    context.agree()  # nobody else is at this point, and nobody has to be
    if texts == ["fail"]:
        self.group.call("double", {"flags": 2})
        raise ValueError("before the followers could agree")
    return texts
"""


def test_in_a_pipeline_the_leader_alone_is_called_and_gives_tasks(grouped, tmp_path) -> None:
    group = grouped(NOTES + TASKS, size=3, parallel="pp")
    assert [bytes(answer.body) for answer in group.leader.run(b"a", b"b")] == [b"a", b"b"]
    group.unload()
    assert notes(tmp_path, 0) == [[[True, False]]] * 2
    done = [["double", {"flags": 2}, text, [True, False]] for text in "ab"]
    assert notes(tmp_path, 1) == notes(tmp_path, 2) == done


def test_a_pipeline_whose_leader_raised_goes_on_when_every_follower_is_back(grouped, tmp_path) -> None:
    group = grouped(NOTES + TASKS, size=3, parallel="pp")
    assert group.leader.ask(b"fail").kind == "HandlerFailed"
    assert group.leader.ask(b"a").body == b"a"
    group.unload()
    assert [said[2] for said in notes(tmp_path, 2)] == ["fail", "a"]


@pytest.mark.parametrize("act", [b"all raise", b"all exit", b"all none"])
@pytest.mark.parametrize("loop", ["", "step"])
def test_a_call_that_fails_on_every_rank_costs_its_requests_and_nothing_else(grouped, tmp_path, act, loop) -> None:
    group = grouped(NOTES + MISBEHAVE, size=3, loop=loop)
    group.leader.send_batch(act)
    assert isinstance(group.leader.until(Reply, Failure), Failure)
    group.leader.send_batch(b"fine", first=2)
    assert bytes(group.leader.until(Reply, Failure).body) == b"fine"
    group.unload()
    assert notes(tmp_path, 0) == notes(tmp_path, 1) == notes(tmp_path, 2) == [[["fine"]]]


def test_followers_that_wait_to_agree_with_a_leader_that_raised_fail_with_it(grouped) -> None:
    group = grouped(NOTES + MISBEHAVE, size=3)
    answers = group.leader.run(b"1 agree", b"2 agree", b"0 raise")
    assert {answer.message for answer in answers} == {"ValueError: no such colour on rank 0"}
    assert group.leader.ask(b"fine").body == b"fine"


def test_a_leader_that_failed_alone_answers_its_clients_and_leaves(grouped) -> None:
    group = grouped(NOTES + MISBEHAVE)
    assert group.leader.ask(b"0 raise").kind == "HandlerFailed"
    status, _, told = group.leader.end()
    assert status == PROTOCOL_FAILURE
    assert "the ranks are out of step: call 1 of the handler raised on rank 0 and did not on rank 1" in told
    assert group.followers[0].end()[0] == PROTOCOL_FAILURE


# Rank 1 holds the lock as long as it lives; the leader of a collective would hear of its end at that moment.
COLLECTIVE = """
import fcntl

def prepare(self, context):
    self.lock = open("lock", "w")
    if self.rank:
        fcntl.flock(self.lock, fcntl.LOCK_EX)

def answer(self, texts, context):
    if texts != ["die"]:
        return texts
    if self.rank:
        os._exit(3)
    fcntl.flock(self.lock, fcntl.LOCK_EX)
    raise RuntimeError("connection closed by peer")
"""


def test_nobody_is_told_what_a_handler_makes_of_the_death_of_another_rank(grouped) -> None:
    """The daemon says which rank died; the leader's error only follows from that."""
    group = grouped(NOTES + COLLECTIVE)
    assert group.leader.ask(b"fine").body == b"fine"
    group.leader.send_batch(b"die")
    assert group.followers[0].end()[0] == 3
    status, _, told = group.leader.end()
    assert status == PROTOCOL_FAILURE
    assert "rank 1 of its group has gone" in told
    with pytest.raises(EOFError):
        group.leader.until(Reply, Failure)


DEVICES = """
import types

class AcceleratorError(RuntimeError):
    pass

cuda = types.SimpleNamespace(is_initialized=lambda: True, empty_cache=lambda: NOTED.append("emptied"))
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda, AcceleratorError=AcceleratorError)
NOTED = []

def lose():
    raise AcceleratorError("device-side assert triggered")

def answer(self, texts, context):
    self.note(texts, NOTED)
    if texts == ["memory"]:
        raise MemoryError
    if texts == ["lost"]:
        cuda.synchronize = lose if self.rank else lambda: None
        raise AcceleratorError("collective has failed")
    return texts
"""


def test_every_rank_frees_its_memory_when_there_was_not_enough(grouped, tmp_path) -> None:
    """G01."""
    group = grouped(NOTES + DEVICES)
    assert group.leader.ask(b"memory").kind == "OutOfMemory"
    group.leader.ask(b"fine")
    group.unload()
    assert notes(tmp_path, 0) == notes(tmp_path, 1) == [[["memory"], []], [["fine"], ["emptied"]]]


def test_a_follower_that_lost_its_device_ends_the_group(grouped) -> None:
    """G02."""
    group = grouped(NOTES + DEVICES)
    group.leader.send_batch(b"lost")
    assert isinstance(group.leader.until(Reply, Failure), Failure)
    status, _, told = group.followers[0].end()
    assert status == DEVICE_LOST
    assert "the device cannot be used by this process any more" in told


@pytest.mark.parametrize(("act", "raised"), [(b"1 raise", "ValueError: no such colour"), (b"1 exit", "SystemExit: 5")])
def test_a_follower_that_failed_alone_leaves_and_shows_why(grouped, act, raised) -> None:
    group = grouped(NOTES + MISBEHAVE)
    assert group.leader.ask(b"fine").body == b"fine"
    group.leader.ask(act)
    status, _, told = group.followers[0].end()
    assert status == PROTOCOL_FAILURE
    assert "call 2 of the handler raised on rank 1 and did not on rank 0" in told
    assert 'File "handler.py", line' in told
    assert raised in told
    assert group.leader.end()[2].endswith("rank 1 of its group has gone\n")


@pytest.mark.parametrize(("name", "raised"), [("double", "KeyError: 'flags'"), ("triple", "served: double")])
def test_a_task_that_raises_ends_the_follower(grouped, name, raised) -> None:
    source = TASKS.partition("def answer")[0]
    source += f"def answer(self, texts, context):\n    self.group.call({name!r})\n    return texts\n"
    group = grouped(NOTES + source, parallel="pp")
    group.leader.ask(b"a")
    status, _, told = group.followers[0].end()
    assert status == PROTOCOL_FAILURE
    assert f"the task {name!r} raised on rank 1" in told
    assert raised in told


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_no_rank_outlives_another(grouped, rank) -> None:
    group = grouped(NOTES + ROWS, size=3)
    group.leader.ask(b"a")
    os.kill(group.ranks[rank].process.pid, signal.SIGKILL)
    for other in group.ranks:
        status, _, told = other.end()
        if other is group.ranks[rank]:
            assert status == -signal.SIGKILL
        else:
            assert status == PROTOCOL_FAILURE
            assert "of its group has gone" in told


def test_a_follower_told_to_unload_stays_as_long_as_its_leader_needs_it(grouped, tmp_path) -> None:
    group = grouped(NOTES + ROWS)
    group.followers[0].send(Unload())
    group.leader.ask(b"a")
    group.unload()
    assert notes(tmp_path, 1) == notes(tmp_path, 0)
    assert len(notes(tmp_path, 1)) == 1


def test_the_end_of_the_daemon_ends_a_follower_that_waits(grouped) -> None:
    group = grouped(NOTES + ROWS)
    group.followers[0].socket.close()
    assert group.followers[0].process.wait(timeout=60) == 0


SETTINGS = """
import types
sys.modules["torch"] = types.SimpleNamespace(set_num_threads=lambda count: NOTED.append(count))
NOTED = []

def answer(self, texts, context):
    if texts == ["agree"]:
        self.note("begun")
        while not context.is_cancelled():
            context.agree()
    self.note(NOTED)
    return texts
"""


def test_settings_reach_a_follower_and_wait_for_the_end_of_its_call(grouped, tmp_path) -> None:
    group = grouped(NOTES + SETTINGS)
    group.leader.send_batch(b"agree")
    group.leader.until_begun()
    eventually(lambda: ["begun"] in notes(tmp_path, 1), what="the follower is in the call")
    group.followers[0].send(Settings(3))
    group.leader.send(Cancel(1))
    group.leader.answers()
    while notes(tmp_path, 1)[-1] != [[3]]:
        assert len(notes(tmp_path, 1)) < 1000
        group.leader.ask(b"a")
    group.unload()
    assert notes(tmp_path, 1)[:2] == [["begun"], [[]]]
    assert [[3]] not in notes(tmp_path, 0)


FORKS = """
def answer(self, texts, context):
    ready, told = os.pipe()
    if not os.fork():
        paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        links = [os.readlink(path) for path in paths if os.path.lexists(path)]
        try:
            self.group.agree([True])
        except RuntimeError as error:
            self.note([link for link in links if "socket" in link], str(error))
        os._exit(0)
    os.close(told)
    os.read(ready, 1)
    return texts
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_what_a_handler_forks_has_no_part_in_the_group(grouped, tmp_path, rank) -> None:
    group = grouped(NOTES + FORKS)
    assert group.leader.ask(b"a").body == b"a"
    assert group.leader.ask(b"b").body == b"b"
    group.unload()
    assert notes(tmp_path, rank) == [[[], f"a process forked by rank {rank} is no rank itself"]] * 2


STREAMS = """
from ts.handler_utils.utils import send_intermediate_predict_response

def answer(self, texts, context):
    for _ in range(10 ** 6 if texts == ["forever"] else 2):
        send_intermediate_predict_response([f"chunk of {self.rank};"], context.request_ids, "ok", 200, context)
        context.agree()
    self.note(texts)
    return ["end"]
"""


def test_chunks_are_sent_by_the_leader_and_all_ranks_stop_when_nobody_waits(grouped, tmp_path) -> None:
    group = grouped(NOTES + STREAMS)
    group.leader.send_batch(b"a")
    assert [bytes(group.leader.until(Reply).body) for _ in range(3)] == [b"chunk of 0;"] * 2 + [b"end"]
    group.leader.send_batch(b"forever", first=2)
    group.leader.until(Reply)
    group.leader.send(Cancel(2))
    assert group.leader.until(Failure).kind == "Cancelled"
    group.leader.send_batch(b"b", first=3)
    while group.leader.until(Reply).more:
        pass
    group.unload()
    assert notes(tmp_path, 0) == notes(tmp_path, 1) == [[["a"]], [["b"]]]


LOADS = """
import logging

def prepare(self, context):
    self.context = context
    logging.getLogger("own").warning("rank %d of %d", self.rank, self.group.size)
    context.report_progress(250, "x" * 5000)
    self.note(self.group.agree([self.rank == 0]), context.system_properties["gpu_id"])

def answer(self, texts, context):
    context.report_progress(10, "too late")
    return texts
"""


def test_every_rank_logs_tells_its_progress_and_can_agree_while_it_loads(grouped, tmp_path) -> None:
    group = grouped(NOTES + LOADS, gpu_id=0)
    for number, rank in enumerate(group.ranks):
        progress = [message for message in rank.seen if isinstance(message, Progress)]
        assert progress == [Progress(0, "loading handler.py"), Progress(100, "x" * 1024)]
        (log,) = [message for message in rank.seen if isinstance(message, Log)]
        assert log.text == f"rank {number} of 2"
    group.leader.ask(b"a")
    assert Progress(10, "too late") not in group.leader.seen
    group.unload()
    assert notes(tmp_path, 0) == notes(tmp_path, 1) == [[[True], 0]]


def test_a_load_that_fails_on_one_rank_is_told_by_that_rank(start_group, tmp_path) -> None:
    (tmp_path / "handler.py").write_text(
        NOTES + "def prepare(self, context):\n    if self.rank:\n        raise OSError('shard 2 is missing')\n" + ROWS
    )
    group = start_group(tmp_path)
    group.begin_load()
    failed = group.followers[0].until_loaded()
    assert isinstance(failed, LoadFailed)
    assert failed.message.startswith("OSError: shard 2 is missing (handler.py:")


def test_coroutines_cannot_be_called_on_every_rank_together(start_group, tmp_path) -> None:
    (tmp_path / "handler.py").write_text(NOTES + ROWS)
    group = start_group(tmp_path)
    group.begin_load(loop="async")
    for rank in group.ranks:
        failed = rank.until_loaded()
        assert isinstance(failed, LoadFailed)
        assert "asyncCommunication" in failed.message
        assert "parallelType tp" in failed.message


COROUTINES = """
import asyncio

def prepare(self, context):
    self.group.serve("note", lambda arguments, body: self.note(arguments["text"]))

async def answer(self, texts, context):
    self.group.call("note", {"text": texts[0]})
    await asyncio.sleep(0)
    return texts
"""


def test_a_pipeline_may_be_led_by_coroutines(grouped, tmp_path) -> None:
    group = grouped(NOTES + COROUTINES, parallel="pp", loop="async")
    for number, text in enumerate((b"a", b"b"), 1):
        group.leader.send_batch(text, first=number)
        assert group.leader.until(Reply).body == text
    group.unload()
    assert notes(tmp_path, 1) == [["a"], ["b"]]


def test_a_worker_that_is_alone_has_no_group_and_may_agree(loaded, tmp_path) -> None:
    (tmp_path / "handler.py").write_text(
        "def handle(data, context):\n    context.agree()\n    return [str((context.group, context.is_cancelled()))]"
        " if data else None\n"
    )
    assert loaded(tmp_path).ask(b"a").body == b"(None, False)"


def test_a_worker_is_kept_on_its_cores(start_with, tmp_path) -> None:
    core = max(os.sched_getaffinity(0))
    (tmp_path / "handler.py").write_text(
        "import os\ndef handle(data, context):\n    return [str(os.sched_getaffinity(0))] if data else None\n"
    )
    worker = start_with(tmp_path, {"--cores": core})
    worker.load()
    assert worker.ask(b"").body == b"{%d}" % core


def test_a_core_that_it_may_not_have_is_named(start_with, tmp_path) -> None:
    mine = min(os.sched_getaffinity(0))
    status, _, told = start_with(tmp_path, {"--cores": f"{mine},1000,1001"}).end()
    assert status == 1
    assert "it may not run on the cores 1000, 1001; it had " in told
