"""A worker of several ranks, with fake processes: they load together, the leader alone is asked, they end together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest
from fakes import (
    FakePlacement,
    FakeWorker,
    ManualClock,
    answers,
    call,
    echoes,
    fails_to_load,
    in_loop,
    loads_only,
    turns,
    until,
)

from torchd_protos.frames import (
    PROTOCOL_VERSION,
    Batch,
    Cancel,
    Credit,
    Failure,
    FrameLimits,
    Hello,
    Load,
    Loaded,
    LoadFailed,
    Log,
    Message,
    Progress,
    Replies,
    Reply,
    Settings,
    Unload,
)
from torchd_server import errors
from torchd_server.accelerators.cpu import ThreadBudget
from torchd_server.batching.policy import BatchPolicy
from torchd_server.batching.queues import Fifo
from torchd_server.batching.waits import AdaptiveWait
from torchd_server.group import LEAVE_SECONDS
from torchd_server.metrics import Metrics
from torchd_server.placement.base import Exit, Output, WorkerSpec
from torchd_server.rank import ABANDON_SECONDS, RankState
from torchd_server.request import Request, State
from torchd_server.worker import HANG_GRACE_SECONDS, STACK_DUMP_SECONDS, Worker, WorkerPlan, WorkerState

Behaviour = Callable[[FakeWorker], Awaitable[None]]


async def leaves_when_unloaded(process: FakeWorker) -> None:
    """A rank that is told everything by the leader, and by the daemon when to leave."""
    await loads_only(process)
    await process.hears(Unload)
    process.exit(0)


async def says_hello(process: FakeWorker) -> None:
    """And never that it has loaded."""
    process.hello()


class Bench:
    """Workers of two ranks or more."""

    def __init__(self, *behaviours: Behaviour, ranks: int = 2, cores: int = 8, gpu: int | None = None) -> None:
        self.clock = ManualClock()
        self.placement = FakePlacement(*(behaviours or (loads_only,)))
        self.policy = BatchPolicy(Fifo(), 4, 100, AdaptiveWait(0.1), self.clock)
        self.threads = ThreadBudget(cores)
        self.metrics = Metrics().of_model("m", "1.0")
        self.requests: list[Request] = []
        spec = WorkerSpec("m/1.0", 0, directory=None, ranks=({},) * ranks)  # type: ignore[arg-type] # the fake has no folder
        self.plan = WorkerPlan(spec, Load(model="m", version="1.0", gpu_id=gpu), 60.0, 20.0, 0, FrameLimits())

    def worker(self) -> Worker:
        return Worker(self.plan, self.placement, self.policy, self.threads, self.metrics, self.clock, lambda: None)

    async def started(self) -> tuple[Worker, list[FakeWorker]]:
        worker = self.worker()
        await worker.start()
        return worker, self.placement.launched[-len(worker.ranks) :]

    async def running(self, count: int = 1, *, started: bool = True) -> tuple[Worker, list[FakeWorker], Batch]:
        """A worker that has been sent `count` requests in one batch."""
        for number in range(count):
            request = Request(call(b"%d" % number), number + 1, 20.0, self.clock, lambda _: None)
            self.requests.append(request)
            self.policy.put(request)
        worker, processes = await self.started()
        batch = await processes[0].hears(Batch)
        if started:
            processes[0].begin(batch.step)
        await turns()
        return worker, processes, batch

    async def end(self, worker: Worker) -> errors.TorchdError:
        """How it ended; fails if it does not. No process of it lives."""
        await until(worker.dead.done)
        self.clock.advance(10)
        assert self.placement.alive == []
        assert all(rank.state is RankState.GONE for rank in worker.ranks)
        assert self.threads.share == 8
        return worker.dead.result()


@in_loop
async def test_a_worker_is_ready_when_all_of_its_ranks_have_loaded() -> None:
    bench = Bench(loads_only, says_hello)
    worker = bench.worker()
    start = asyncio.ensure_future(worker.start())
    await until(lambda: worker.ranks[0].state is RankState.LOADED)
    assert (worker.state, start.done()) == (WorkerState.LOADING, False)
    follower = bench.placement.launched[1]
    assert [rank.pid for rank in worker.ranks] == [process.pid for process in bench.placement.launched]
    assert worker.pid == bench.placement.launched[0].pid
    follower.say(Loaded())
    await start
    assert worker.state is WorkerState.READY
    worker.kill(errors.Draining("test"))
    await bench.end(worker)


@pytest.mark.parametrize(("gpu", "expected"), [(None, [None, None, None]), (0, [0, 1, 2])])
@in_loop
async def test_every_rank_loads_with_the_device_of_its_number(gpu: int | None, expected: list[int | None]) -> None:
    bench = Bench(ranks=3, gpu=gpu)
    worker, processes = await bench.started()
    assert [process.told(Load)[0].gpu_id for process in processes] == expected
    worker.kill(errors.Draining("test"))
    await bench.end(worker)


@in_loop
async def test_the_leader_alone_is_asked_and_answers() -> None:
    bench = Bench()
    worker, (leader, follower), batch = await bench.running(3)
    bench.requests[0].cancel()
    await leader.hears(Cancel)
    leader.say(Reply(2, body=b"chunk", more=True))
    assert (await anext(bench.requests[1].replies())).body == b"chunk"
    await leader.hears(Credit)
    leader.say(*answers(batch))
    assert (await bench.requests[2].answer())[0].body == b"2"
    assert [type(message) for message in follower.heard] == [Load]
    worker.kill(errors.Draining("test"))
    await bench.end(worker)


@pytest.mark.parametrize("said", [Reply(1, body=b"x", end_of_step=True), Failure(1, "HandlerFailed", "no"), Replies()])
@in_loop
async def test_a_rank_beside_the_leader_that_answers_breaks_the_protocol(said: Message) -> None:
    """W22."""
    bench = Bench()
    worker, (leader, follower), _ = await bench.running()
    follower.say(said)
    end = await bench.end(worker)
    assert isinstance(end, errors.WorkerProtocolBroken)
    assert "rank 1: " in str(end)
    assert f"a rank beside the leader does not say {type(said).__name__}" in str(end)
    assert leader.was_killed
    assert follower.was_killed
    assert isinstance(bench.requests[0].error, errors.WorkerProtocolBroken)


@pytest.mark.parametrize("speaker", [0, 1])
@in_loop
async def test_a_rank_that_serves_cannot_say_that_it_could_not_load(speaker: int) -> None:
    """Who could not load leaves by itself; one that serves and stays would go on without the others."""
    bench = Bench()
    worker, processes = await bench.started()
    processes[speaker].say(LoadFailed("LoadFailed", "no"))
    assert isinstance(await bench.end(worker), errors.WorkerProtocolBroken)


@in_loop
async def test_a_rank_that_says_it_is_another_is_refused() -> None:
    """W06."""

    async def poses_as_leader(process: FakeWorker) -> None:
        process.say(Hello(PROTOCOL_VERSION, process.spec.incarnation, 0, process.pid))

    bench = Bench(loads_only, poses_as_leader)
    worker = bench.worker()
    with pytest.raises(errors.WorkerProtocolBroken, match=r"rank 1: .* rank 0, but .* rank 1, was started"):
        await worker.start()
    await bench.end(worker)


@pytest.mark.parametrize("victim", [0, 1, 2])
@in_loop
async def test_the_death_of_one_rank_in_mid_batch_is_the_death_of_all(victim: int) -> None:
    """W01: whoever it was, the client is told which, and how it ended."""
    bench = Bench(ranks=3)
    worker, processes, batch = await bench.running(2)
    processes[0].say(answers(batch)[0])
    await turns()
    processes[victim].exit(-11)
    end = await bench.end(worker)
    assert str(end) == f"rank {victim}: the worker process was killed by SIGSEGV"
    assert [process.was_killed for process in processes] == [rank != victim for rank in range(3)]
    assert (await bench.requests[0].answer())[0].body == b"0"
    assert isinstance(bench.requests[1].error, errors.WorkerDied)


@in_loop
async def test_a_leader_whose_device_is_lost_leaves_by_itself_and_the_others_are_killed() -> None:
    """G02: they wait for it in a collective."""
    bench = Bench()
    worker, (leader, follower), _ = await bench.running()
    leader.say(Failure(1, "DeviceLost", "device-side assert"))
    await until(lambda: follower.was_killed)
    assert not leader.was_killed
    leader.exit(71)
    assert isinstance(await bench.end(worker), errors.DeviceLost)
    assert isinstance(bench.requests[0].error, errors.DeviceLost)


@in_loop
async def test_a_leader_that_lost_its_device_and_stays_is_killed() -> None:
    """W16: a driver may hold it where it wants to leave."""
    bench = Bench(ranks=1)
    worker, [process], _ = await bench.running()
    process.say(Failure(1, "DeviceLost", "device-side assert"))
    await until(lambda: bench.requests[0].error is not None)
    assert not process.was_killed
    bench.clock.advance(LEAVE_SECONDS)
    assert process.was_killed
    assert isinstance(await bench.end(worker), errors.DeviceLost)


@in_loop
async def test_a_rank_that_could_not_load_and_stays_is_killed() -> None:
    """W16: what its libraries do at the end may hang, and whoever registers it waits for the answer."""

    async def stays(process: FakeWorker) -> None:
        process.hello()
        await process.hears(Load)
        process.say(LoadFailed("LoadFailed", "no"))

    bench = Bench(says_hello, stays)
    worker = bench.worker()
    start = asyncio.ensure_future(worker.start())
    await until(lambda: len(bench.placement.launched) == 2 and bench.placement.launched[0].was_killed)
    assert not bench.placement.launched[1].was_killed
    bench.clock.advance(LEAVE_SECONDS)
    with pytest.raises(errors.LoadFailed, match="rank 1: no"):
        await start
    await bench.end(worker)


@in_loop
async def test_the_death_of_a_follower_hands_back_what_had_not_begun() -> None:
    """W04, P04."""
    bench = Bench()
    worker, (_, follower), _ = await bench.running(2, started=False)
    follower.exit(-9)
    await bench.end(worker)
    assert [request.state for request in bench.requests] == [State.QUEUED, State.QUEUED]


@in_loop
async def test_an_answer_that_was_on_its_way_when_a_follower_died_is_delivered() -> None:
    bench = Bench()
    worker, (leader, follower), batch = await bench.running()
    leader.say(*answers(batch))
    follower.exit(-9)
    await bench.end(worker)
    assert (await bench.requests[0].answer())[0].body == b"0"


@in_loop
async def test_a_follower_that_closes_its_socket_is_of_no_use_and_all_are_killed() -> None:
    """W20."""
    bench = Bench()
    worker, (leader, follower), _ = await bench.running()
    assert follower._transport is not None
    follower._transport.close()
    assert isinstance(await bench.end(worker), errors.WorkerDied)
    assert leader.was_killed
    assert follower.was_killed


@in_loop
async def test_a_worker_is_dead_when_its_last_process_is_gone_or_given_up() -> None:
    """And once: a process that will not die keeps what it holds, which is told."""
    bench = Bench()
    worker, (leader, follower), _ = await bench.running()
    leader.is_immortal = True
    follower.exit(-9)
    await until(lambda: worker.ranks[1].state is RankState.GONE)
    assert not worker.dead.done()
    bench.clock.advance(ABANDON_SECONDS)
    assert worker.dead.done()
    assert str(worker.dead.result()) == "rank 1: the worker process was killed by SIGKILL"
    told: list[str] = []
    worker.when_gone(lambda: told.append("gone"))
    assert (worker.is_gone, told) == (False, [])
    leader.exit(0)
    await until(lambda: told)
    assert worker.is_gone
    await bench.end(worker)


@in_loop
async def test_who_waits_for_the_end_of_all_processes_is_told_once() -> None:
    bench = Bench(ranks=3)
    worker, processes = await bench.started()
    told: list[str] = []
    worker.when_gone(lambda: told.append("gone"))
    for process in processes:
        assert told == []
        process.exit(0)
    await bench.end(worker)
    worker.when_gone(lambda: told.append("had gone"))
    assert told == ["gone", "had gone"]


@in_loop
async def test_a_load_that_fails_on_rank_1_is_told_with_its_traceback_and_ends_the_others_at_once() -> None:
    """The others wait in a collective for the one that failed."""
    bench = Bench(says_hello, fails_to_load)
    worker = bench.worker()
    with pytest.raises(errors.LoadFailed, match=r"^rank 1: ImportError: no foo") as failure:
        await worker.start()
    assert "handler.py" in failure.value.traceback
    assert await bench.end(worker) is failure.value
    leader, follower = bench.placement.launched
    assert leader.was_killed
    assert not follower.was_killed, "it leaves by itself"


@in_loop
async def test_the_first_rank_that_fails_to_load_is_the_one_that_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The leader fails for want of the other."""
    caplog.set_level(logging.INFO)

    async def runs_out_of_memory(process: FakeWorker) -> None:
        process.hello()
        await process.hears(Load)
        process.say(LoadFailed("OutOfMemory", "CUDA out of memory"))

    async def misses_the_other(process: FakeWorker) -> None:
        process.is_immortal = True
        process.hello()
        await until(lambda: worker.ranks[1].state is RankState.GONE)
        process.say(LoadFailed("LoadFailed", "Connection closed by peer"))
        process.exit(1)

    bench = Bench(misses_the_other, runs_out_of_memory)
    worker = bench.worker()
    start = asyncio.ensure_future(worker.start())
    await until(lambda: len(bench.placement.launched) == 2 and bench.placement.launched[0].was_killed)
    bench.placement.launched[1].exit(1)
    with pytest.raises(errors.OutOfMemory, match="rank 1: CUDA out of memory"):
        await start
    assert "rank 0: Connection closed by peer" in caplog.text
    await bench.end(worker)


@pytest.mark.parametrize("words", [[], [LoadFailed("LoadFailed", "no shard")]], ids=["without a word", "with words"])
@in_loop
async def test_a_rank_that_dies_while_loading_is_told_whatever_the_others_say_of_it(words: list[Message]) -> None:
    """W03: its exit may be heard before its words, and before those of a leader that misses it."""

    async def misses_the_other(process: FakeWorker) -> None:
        process.is_immortal = True
        process.hello()
        await until(lambda: process.was_killed)
        process.say(LoadFailed("LoadFailed", "Connection closed by peer"))
        await turns()
        follower = bench.placement.launched[1]
        follower.say(*words)
        await turns()
        assert follower._transport is not None
        follower._transport.close()
        process.exit(1)

    bench = Bench(misses_the_other, says_hello)
    worker = bench.worker()
    start = asyncio.ensure_future(worker.start())
    await until(lambda: worker.state is WorkerState.LOADING)
    bench.placement.launched[1].exited.set_result(Exit(-11))
    with pytest.raises(errors.TorchdError, match="rank 1: no shard" if words else "rank 1: .*SIGSEGV"):
        await start
    await bench.end(worker)


@in_loop
async def test_a_rank_that_never_loads_is_named_and_all_tell_their_stacks() -> None:
    """W26."""
    bench = Bench(loads_only, says_hello)
    worker = bench.worker()
    start = asyncio.ensure_future(worker.start())
    await until(lambda: worker.ranks[0].state is RankState.LOADED)
    bench.clock.advance(60.0)
    assert [process.stack_dumps for process in bench.placement.launched] == [1, 1]
    assert not any(process.was_killed for process in bench.placement.launched)
    bench.clock.advance(STACK_DUMP_SECONDS)
    with pytest.raises(errors.LoadFailed, match=r"^rank 1: the model was not loaded within startup_timeout, 60 s"):
        await start
    await bench.end(worker)


@in_loop
async def test_an_answer_past_its_time_asks_all_ranks_for_their_stacks() -> None:
    """W05: the leader may wait for one that hangs."""
    bench = Bench()
    worker, processes, _ = await bench.running()
    bench.clock.advance(20.0 + HANG_GRACE_SECONDS)
    assert [process.stack_dumps for process in processes] == [1, 1]
    bench.clock.advance(STACK_DUMP_SECONDS)
    assert isinstance(await bench.end(worker), errors.WorkerTimeout)


@in_loop
async def test_unloading_tells_the_leader_last_and_lets_each_leave_in_its_time() -> None:
    """What a rank does at its end is not cut off because another was quicker."""
    bench = Bench(loads_only, leaves_when_unloaded, leaves_when_unloaded, ranks=3)
    worker, processes = await bench.started()
    told: list[int] = []
    for process in processes:
        process.data_received = _noting(process, told)  # type: ignore[method-assign]
    stopping = asyncio.ensure_future(worker.stop(5.0))
    await until(lambda: worker.ranks[1].state is worker.ranks[2].state is RankState.GONE)
    assert not processes[0].was_killed
    processes[0].exit(0)
    await stopping
    assert told == [2, 1, 0]
    assert not any(process.was_killed for process in processes)
    assert isinstance(await bench.end(worker), errors.Draining)


def _noting(process: FakeWorker, told: list[int]) -> Callable[[bytes], None]:
    receive = process.data_received

    def received(data: bytes) -> None:
        told.append(process.rank)
        receive(data)

    return received


@in_loop
async def test_a_rank_that_does_not_leave_is_killed_after_a_while() -> None:
    """W19."""
    bench = Bench(leaves_when_unloaded, loads_only)
    worker, (_, follower) = await bench.started()
    await worker.stop(5.0)
    assert follower.was_killed
    await bench.end(worker)


@in_loop
async def test_each_rank_takes_a_share_of_the_cores_and_hears_of_a_new_one() -> None:
    bench = Bench()
    worker, processes = await bench.started()
    assert [process.told(Load)[0].threads for process in processes] == [4, 4]
    assert processes[1].spec.environment["OMP_NUM_THREADS"] == "4"
    second, _ = await bench.started()
    await until(lambda: all(process.told(Settings) for process in processes))
    assert [process.told(Settings)[-1] for process in processes] == [Settings(2)] * 2
    assert worker.threads == 2
    second.kill(errors.Draining("test"))
    await until(second.dead.done)
    worker.kill(errors.Draining("test"))
    await bench.end(worker)


@in_loop
async def test_progress_is_that_of_the_rank_that_is_least_far() -> None:
    bench = Bench(says_hello)
    worker = bench.worker()
    start = asyncio.ensure_future(worker.start())
    await until(lambda: worker.state is WorkerState.LOADING)
    leader, follower = bench.placement.launched
    assert worker.progress == ""
    shown = []
    for process, message in (
        (leader, Progress(40, "shard 2 of 5")),
        (follower, Progress(20, "")),
        (follower, Loaded()),
    ):
        process.say(message)
        before = worker.progress
        await until(lambda before=before: worker.progress != before)
        shown.append(worker.progress)
    assert shown == ["rank 1: 0 %", "rank 1: 20 %", "rank 0: 40 % shard 2 of 5"]
    assert worker.ranks[0].progress == "40 % shard 2 of 5"
    leader.say(Loaded())
    await start
    assert worker.progress == ""
    worker.kill(errors.Draining("test"))
    await bench.end(worker)


@in_loop
async def test_what_a_rank_writes_and_logs_carries_its_number(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    worker, (_, follower) = await bench.started()
    follower.output("stderr", "Segmentation fault")
    follower.say(Log(30, "handler", "careful"))
    await until(lambda: "careful" in caplog.text)
    assert list(worker.stderr) == ["rank 1: Segmentation fault"]
    assert {record.rank for record in caplog.records if record.name == "torchd.model"} == {"1"}  # type: ignore[attr-defined]
    worker.kill(errors.Draining("test"))
    await bench.end(worker)


@in_loop
async def test_a_worker_killed_while_its_ranks_start_leaves_no_process() -> None:
    gate = asyncio.Event()

    class Slow(FakePlacement):
        async def launch(self, spec: WorkerSpec, output: Output) -> list[FakeWorker]:
            processes = await super().launch(spec, output)
            await gate.wait()
            return processes

    bench = Bench()
    bench.placement = Slow(echoes)
    worker = bench.worker()
    start = asyncio.ensure_future(worker.start())
    await until(lambda: len(bench.placement.launched) == 2)
    worker.kill(errors.Draining("test"))
    gate.set()
    with pytest.raises(errors.Draining):
        await start
    await bench.end(worker)


@in_loop
async def test_a_rank_that_dies_while_the_links_are_opened_takes_the_others_with_it() -> None:
    """W03."""

    async def dies_at_once(process: FakeWorker) -> None:
        process.exit(-9)

    bench = Bench(says_hello, dies_at_once)
    worker = bench.worker()
    with pytest.raises(errors.WorkerDied, match=r"rank 1: .*SIGKILL"):
        await worker.start()
    await bench.end(worker)
