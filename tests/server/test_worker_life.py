"""One worker from its start to its end, with a fake process at the other end of a real socketpair."""

from __future__ import annotations

import asyncio

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
    CHUNK_OVERHEAD,
    PREFIX,
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
    Message,
    Reply,
    Settings,
    Unload,
    encode,
)
from torchd_server import errors
from torchd_server.accelerators.cpu import ThreadBudget
from torchd_server.batching.policy import BatchPolicy
from torchd_server.batching.queues import Fifo
from torchd_server.batching.turns import EachStep, FreeRunning, Turn
from torchd_server.batching.waits import AdaptiveWait, NoWait
from torchd_server.deadlines import Deadlines
from torchd_server.group import LEAVE_SECONDS
from torchd_server.metrics import Metrics
from torchd_server.placement.base import Exit, WorkerSpec
from torchd_server.request import Request, State
from torchd_server.worker import HANG_GRACE_SECONDS, STACK_DUMP_SECONDS, Worker, WorkerPlan, WorkerState


class Bench:
    """A worker with everything it needs, and the requests it is given."""

    def __init__(
        self, *behaviours: object, size: int = 4, threads: ThreadBudget | None = None, turn: Turn | None = None
    ) -> None:
        self.clock = ManualClock()
        self.deadlines = Deadlines(self.clock)
        self.placement = FakePlacement(*(behaviours or (loads_only,)))  # type: ignore[arg-type]
        self.policy = BatchPolicy(Fifo(), size, 100, NoWait() if turn else AdaptiveWait(0.1), self.clock, turn)
        self.threads = threads or ThreadBudget(4)
        self.metrics = Metrics().of_model("m", "1.0")
        self.requests: list[Request] = []
        self.fixed_threads = 0

    def worker(self) -> Worker:
        load = Load(model="m", version="1.0", handler="handler.py")
        spec = WorkerSpec("m/1.0", 0, directory=None)  # type: ignore[arg-type] # the fake has no folder
        plan = WorkerPlan(spec, load, 60.0, 20.0, self.fixed_threads, FrameLimits(payload=1024))
        return Worker(plan, self.placement, self.policy, self.threads, self.metrics, self.clock, lambda: None)

    async def started(self) -> tuple[Worker, FakeWorker]:
        worker = self.worker()
        await worker.start()
        return worker, self.placement.launched[-1]

    def put(self, body: bytes = b"hello") -> Request:
        request = Request(call(body), len(self.requests) + 1, 20.0, self.clock, self.deadlines.forget)
        self.deadlines.watch(request)
        self.requests.append(request)
        self.policy.put(request)
        return request

    async def end(self, worker: Worker) -> errors.TorchdError:
        """How it ended; fails if it does not."""
        await until(worker.dead.done)
        self.clock.advance(10)
        return worker.dead.result()


async def running_batch(bench: Bench, count: int, *, started: bool = True) -> tuple[Worker, FakeWorker, Batch]:
    """A worker that has been sent `count` requests in one batch."""
    for number in range(count):
        bench.put(b"%d" % number)
    worker, process = await bench.started()
    batch = await process.hears(Batch)
    assert len(batch.items) == count
    if started:
        process.begin(batch.step)
    await turns()
    return worker, process, batch


@in_loop
async def test_a_worker_goes_through_its_states() -> None:
    bench = Bench(echoes)
    worker = bench.worker()
    states = [worker.state]
    worker._on_change = lambda: states.append(worker.state)
    await worker.start()
    await worker.stop(1.0)
    assert states == [
        WorkerState.STARTING,
        WorkerState.LOADING,
        WorkerState.READY,
        WorkerState.DRAINING,
        WorkerState.DEAD,
    ]
    assert bench.threads.share == 4
    bench.clock.advance(1)
    assert bench.placement.launched[0].was_closed


@in_loop
async def test_each_request_of_a_batch_gets_its_own_answer() -> None:
    """P05."""
    bench = Bench(echoes)
    requests = [bench.put(b"%d" % number) for number in range(4)]
    worker, _ = await bench.started()
    assert [(await request.answer())[0].body for request in requests] == [b"0", b"1", b"2", b"3"]
    await worker.stop(1.0)


@in_loop
async def test_a_load_failure_has_the_handlers_words_and_its_traceback() -> None:
    bench = Bench(fails_to_load)
    worker = bench.worker()
    with pytest.raises(errors.LoadFailed, match="no foo") as failure:
        await worker.start()
    assert "handler.py" in failure.value.traceback
    assert await bench.end(worker) is failure.value


@in_loop
async def test_a_process_that_cannot_be_started_is_a_load_failure() -> None:
    """W29."""

    class NoRoom(FakePlacement):
        async def launch(self, spec: object, output: object) -> list[FakeWorker]:
            raise BlockingIOError(11, "Resource temporarily unavailable")

    bench = Bench()
    bench.placement = NoRoom()
    worker = bench.worker()
    with pytest.raises(errors.LoadFailed, match="could not be started"):
        await worker.start()
    assert worker.state is WorkerState.DEAD
    assert bench.threads.share == 4


@in_loop
async def test_death_while_loading_is_told_with_its_signal() -> None:
    """W03."""

    async def dies(process: FakeWorker) -> None:
        process.hello()
        process.exit(-11)

    bench = Bench(dies)
    worker = bench.worker()
    with pytest.raises(errors.WorkerDied, match="SIGSEGV"):
        await worker.start()
    await bench.end(worker)


@in_loop
async def test_death_in_the_middle_of_a_batch_fails_what_had_begun() -> None:
    """W01, W11: also with exit status 0."""
    bench = Bench()
    worker, process, batch = await running_batch(bench, 3)
    process.say(answers(batch)[0])
    process.exit(0)
    end = await bench.end(worker)
    first, *rest = bench.requests
    assert (await first.answer())[0].body == b"0"
    assert [type(request.error) for request in rest] == [errors.WorkerDied] * 2
    assert "exited with status 0" in str(end)


@in_loop
async def test_a_batch_that_had_not_begun_goes_back_to_the_queue() -> None:
    """P04: only what had begun may have been executed."""
    bench = Bench(loads_only, echoes)
    worker, process, _ = await running_batch(bench, 3, started=False)
    bench.requests[1].cancel()
    later = bench.put(b"later")
    process.exit(-9)
    await bench.end(worker)
    assert [request.state for request in bench.requests] == [State.QUEUED, State.DONE, State.QUEUED, State.QUEUED]
    other, next_process = await bench.started()
    bench.clock.advance(1.0)  # the one who cancelled was known as company: the batch lingers for it
    assert (await later.answer())[0].body == b"later"
    sent = [bytes(item.call.parts[0].body) for batch in next_process.told(Batch) for item in batch.items]
    assert sent == [b"0", b"2", b"later"]
    await other.stop(1.0)


@in_loop
async def test_what_stood_behind_the_batches_that_ended_two_workers_is_not_blamed() -> None:
    bench = Bench(loads_only, loads_only, size=1)
    worker, process = await bench.started()
    bench.policy.finished(worker, [], 0.002)  # from now on batches are known to be quick
    first, second, behind = [bench.put() for _ in range(3)]
    for guilty in (first, second):
        batch = await process.hears(Batch)
        assert [item.request for item in batch.items] == [guilty.number]
        process.begin(batch.step)
        process.exit(-9)
        await until(worker.dead.done)
        assert isinstance(guilty.error, errors.WorkerDied)
        if guilty is first:
            worker, process = await bench.started()
    assert behind.sent_times == 2
    assert behind.state is State.QUEUED


HOSTILE: dict[str, list[Message] | bytes] = {
    "an answer to a request of nobody": [Reply(999, body=b"x")],
    "a failure of a request of nobody": [Failure(999, "HandlerFailed", "no")],
    "two answers to one request": [Reply(1, body=b"first"), Reply(1, body=b"second")],
    "an answer after a failure": [Failure(1, "HandlerFailed", "no"), Reply(1, body=b"second")],
    "an end before everybody was answered": [Reply(1, body=b"first", end_of_step=True)],
    "an end in the middle of a stream": [Reply(1, body=b"first", more=True, end_of_step=True)],
    "an answer that is too large": [Reply(1, body=b"x" * 2000)],
    "loaded twice": [Loaded()],
    "hello twice": [Hello(PROTOCOL_VERSION, 0, 0, 1)],
    "a message of the daemon": [Unload()],
    "garbage": b"\xff" * 100,
    "a frame of 2**60 bytes": PREFIX.pack(6, 10, 2**60),
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("what", HOSTILE)
@in_loop
async def test_a_worker_that_breaks_the_protocol_is_killed(what: str) -> None:
    """W21, W22: its requests get a typed error, the first answer stands."""
    bench = Bench()
    worker, process, _ = await running_batch(bench, 2)
    said = HOSTILE[what]
    process.say_bytes(said) if isinstance(said, bytes) else process.say(*said)
    end = await bench.end(worker)
    assert process.was_killed
    assert isinstance(end, errors.WorkerProtocolBroken)
    assert isinstance(bench.requests[1].error, errors.WorkerProtocolBroken)
    assert bench.policy.running == 0
    if isinstance(said, list) and isinstance(said[0], Reply) and said[0].body == b"first":
        assert (await bench.requests[0].replies().__anext__()).body == b"first"
    else:
        assert isinstance(bench.requests[0].error, errors.TorchdError)


@in_loop
async def test_a_second_hello_and_loaded_do_not_make_a_worker_take_two_batches() -> None:
    """W22: what it runs already would be forgotten."""
    bench = Bench()
    worker, process, _ = await running_batch(bench, 4)
    process.say(Hello(PROTOCOL_VERSION, worker.incarnation, 0, process.pid), Loaded())
    for _ in range(4):
        bench.put()
    await bench.end(worker)
    assert len(process.told(Batch)) == 1
    assert all(isinstance(request.error, errors.WorkerProtocolBroken) for request in bench.requests[:4])


@in_loop
async def test_half_a_frame_is_never_an_answer() -> None:
    """W12."""
    bench = Bench()
    worker, process, _ = await running_batch(bench, 1)
    frame = b"".join(bytes(buffer) for buffer in encode(Reply(1, body=b"whole", end_of_step=True)))
    process.say_bytes(frame[:-1])
    process.exit(0)
    assert isinstance(await bench.end(worker), errors.WorkerProtocolBroken)
    assert isinstance(bench.requests[0].error, errors.WorkerProtocolBroken)


@in_loop
async def test_an_incarnation_of_another_worker_is_refused() -> None:
    """W06: a late answer of an earlier worker cannot even arrive; its hello is not accepted."""

    async def impostor(process: FakeWorker) -> None:
        process.say(Hello(PROTOCOL_VERSION, process.spec.incarnation - 1, 0, process.pid), Loaded())

    bench = Bench(impostor)
    worker = bench.worker()
    with pytest.raises(errors.WorkerProtocolBroken, match="was started"):
        await worker.start()
    await bench.end(worker)


@in_loop
async def test_another_protocol_version_is_refused_by_name() -> None:
    async def newer(process: FakeWorker) -> None:
        process.say(Hello(99, process.spec.incarnation, 0, process.pid))

    bench = Bench(newer)
    worker = bench.worker()
    with pytest.raises(errors.WorkerProtocolBroken, match="speaks protocol 99"):
        await worker.start()
    await bench.end(worker)


@in_loop
async def test_a_process_that_closes_its_socket_is_of_no_use_and_is_killed() -> None:
    """W20."""
    bench = Bench()
    worker, process, _ = await running_batch(bench, 1)
    assert process._transport is not None
    process._transport.close()
    assert isinstance(await bench.end(worker), errors.WorkerDied)
    assert process.was_killed
    assert isinstance(bench.requests[0].error, errors.WorkerDied)


@in_loop
async def test_a_worker_whose_device_is_lost_gets_no_other_batch_and_dies_of_that() -> None:
    """G02: it answers without an end of the batch; whatever else it is, is ended."""
    bench = Bench()
    worker, process, _ = await running_batch(bench, 2)
    waiting = bench.put()
    process.say(Failure(1, "DeviceLost", "assert"), Failure(2, "DeviceLost", "assert"))
    await until(lambda: bench.requests[1].error is not None)
    await turns()
    assert waiting.state is State.QUEUED
    bench.clock.advance(LEAVE_SECONDS)
    assert process.was_killed
    assert isinstance(await bench.end(worker), errors.DeviceLost)
    assert [type(request.error) for request in bench.requests[:2]] == [errors.DeviceLost] * 2
    assert worker.has_answered, "the next one starts at once"


@in_loop
async def test_a_process_whose_child_holds_the_socket_is_still_dead() -> None:
    """W16: the exit counts, not the end of the stream alone."""
    bench = Bench()
    worker, process, _ = await running_batch(bench, 1)
    process.exited.set_result(Exit(-9))
    await turns()
    bench.clock.advance(1)
    assert isinstance(await bench.end(worker), errors.WorkerDied)
    assert isinstance(bench.requests[0].error, errors.WorkerDied)


@in_loop
async def test_loading_past_its_time_asks_for_the_stacks_then_kills() -> None:
    """W26."""

    async def hangs(process: FakeWorker) -> None:
        process.hello()

    bench = Bench(hangs)
    worker = bench.worker()
    start = asyncio.ensure_future(worker.start())
    await until(lambda: worker.state is WorkerState.LOADING)
    bench.clock.advance(59.9)
    process = bench.placement.launched[0]
    assert process.stack_dumps == 0
    bench.clock.advance(0.11)
    assert (process.stack_dumps, process.was_killed) == (1, False)
    bench.clock.advance(STACK_DUMP_SECONDS)
    assert process.was_killed
    with pytest.raises(errors.LoadFailed, match="startup_timeout"):
        await start
    await bench.end(worker)


@in_loop
async def test_an_answer_past_its_time_asks_for_the_stacks_then_kills() -> None:
    """W05, W14, W15: the client had its error at the timeout; the worker has a grace for handlers that end late."""
    bench = Bench()
    worker, process, _ = await running_batch(bench, 1)
    bench.clock.advance(20.0)
    assert isinstance(bench.requests[0].error, errors.DeadlineExceeded)
    assert not process.was_killed
    assert process.stack_dumps == 0
    await until(lambda: process.told(Cancel))
    bench.clock.advance(HANG_GRACE_SECONDS)
    assert (process.stack_dumps, process.was_killed) == (1, False)
    bench.clock.advance(STACK_DUMP_SECONDS)
    assert isinstance(await bench.end(worker), errors.WorkerTimeout)


@in_loop
async def test_an_answer_in_the_last_moment_saves_the_worker_and_leaves_no_blame() -> None:
    """A later death has its own cause."""
    bench = Bench()
    worker, process, batch = await running_batch(bench, 1)
    bench.clock.advance(20.0 + HANG_GRACE_SECONDS)
    assert process.stack_dumps == 1
    process.say(*answers(batch))
    await until(lambda: worker.has_answered)
    bench.clock.advance(100)
    assert worker.state is WorkerState.READY
    process.exit(-11)
    assert "SIGSEGV" in str(await bench.end(worker))


@in_loop
async def test_a_process_that_cannot_be_killed_is_given_up() -> None:
    bench = Bench()
    worker, process, _ = await running_batch(bench, 1)
    process.is_immortal = True
    worker.kill(errors.WorkerTimeout("hangs"))
    assert not worker.dead.done()
    bench.clock.advance(5)
    assert worker.dead.done()
    assert isinstance(bench.requests[0].error, errors.WorkerTimeout)
    process.exit(0)


@in_loop
async def test_a_cancelled_request_is_told_and_its_answer_dropped() -> None:
    """K02: the worker is not restarted."""
    bench = Bench()
    worker, process, batch = await running_batch(bench, 2)
    bench.requests[0].cancel()
    assert (await process.hears(Cancel)).request == 1
    assert worker.running == 1
    process.say(*answers(batch))
    assert (await bench.requests[1].answer())[0].body == b"1"
    assert isinstance(bench.requests[0].error, errors.Cancelled)
    assert worker.state is WorkerState.READY
    process.exit(0)
    await bench.end(worker)


@in_loop
async def test_chunks_are_credited_as_they_are_read() -> None:
    """P10."""
    bench = Bench()
    worker, process, _ = await running_batch(bench, 1)
    process.say(Reply(1, body=b"12345", more=True))
    replies = bench.requests[0].replies()
    assert (await anext(replies)).body == b"12345"
    assert await process.hears(Credit) == Credit(1, 5 + CHUNK_OVERHEAD)
    process.say(Reply(1, body=b"end", end_of_step=True))
    assert [bytes(reply.body) async for reply in replies] == [b"end"]
    process.exit(0)
    await bench.end(worker)


@pytest.mark.parametrize("kind", ["HandlerFailed", "HandlerExit", "BadOutput", "ResponseTooLarge", "PredictionFailed"])
@in_loop
async def test_a_failure_is_the_class_its_kind_names(kind: str) -> None:
    bench = Bench()
    worker, process, _ = await running_batch(bench, 1)
    process.say(Failure(1, kind, "no", "trace", end_of_step=True, status=418))
    with pytest.raises(getattr(errors, kind), match="no") as failure:
        await bench.requests[0].answer()
    assert (failure.value.status, failure.value.traceback) == (418, "trace")
    assert worker.state is WorkerState.READY
    process.exit(0)
    await bench.end(worker)


@in_loop
async def test_stopping_lets_the_batch_finish_and_takes_no_other() -> None:
    """M04, M05."""
    bench = Bench()
    worker, process, batch = await running_batch(bench, 2)
    stopping = asyncio.ensure_future(worker.stop(5.0))
    await turns()
    assert worker.state is WorkerState.DRAINING
    waiting = bench.put()
    process.say(*answers(batch))
    await process.hears(Unload)
    process.exit(0)
    await stopping
    assert [(await request.answer())[0].body for request in bench.requests[:2]] == [b"0", b"1"]
    assert waiting.state is State.QUEUED
    assert not process.was_killed
    bench.clock.advance(1)


@in_loop
async def test_a_batch_that_outlasts_the_grace_is_ended_with_its_worker() -> None:
    """W19."""
    bench = Bench()
    worker, process, _ = await running_batch(bench, 1)
    await worker.stop(0.01)
    assert process.was_killed
    assert isinstance(bench.requests[0].error, errors.WorkerLost)
    bench.clock.advance(1)


@in_loop
async def test_a_worker_stopped_while_it_starts_leaves_no_process() -> None:
    """Scaled away, or unregistered, in the moment between the start of the process and its first word."""
    gate = asyncio.Event()

    class Slow(FakePlacement):
        async def launch(self, spec: WorkerSpec, output: object) -> list[FakeWorker]:
            processes = await super().launch(spec, output)  # type: ignore[arg-type]
            await gate.wait()
            return processes

    bench = Bench()
    bench.placement = Slow(echoes)
    worker = bench.worker()
    starting = asyncio.ensure_future(worker.start())
    await until(lambda: bench.placement.launched)
    stopping = asyncio.ensure_future(worker.stop(1.0))
    await turns()
    gate.set()
    await stopping
    await asyncio.wait([starting])
    starting.exception()
    await turns(50)
    bench.clock.advance(10)
    state, alive = worker.state, bench.placement.alive
    for process in alive:
        process.exit(0)
    assert (state, alive) == (WorkerState.DEAD, [])


@in_loop
async def test_living_workers_are_told_their_new_share_of_the_cores() -> None:
    bench = Bench(echoes, threads=ThreadBudget(4))
    first, first_process = await bench.started()
    assert first_process.told(Load)[0].threads == 4
    assert first_process.spec.environment["OMP_NUM_THREADS"] == "4"
    second, second_process = await bench.started()
    assert second_process.told(Load)[0].threads == 2
    await until(lambda: first_process.told(Settings))
    assert first_process.told(Settings) == [Settings(2)]
    await second.stop(1.0)
    await until(lambda: len(first_process.told(Settings)) == 2)
    assert first.threads == 4
    await first.stop(1.0)


@in_loop
async def test_threads_given_for_a_model_do_not_follow_the_share() -> None:
    bench = Bench(echoes, threads=ThreadBudget(4))
    bench.fixed_threads = 3
    first, process = await bench.started()
    second, _ = await bench.started()
    await turns()
    assert process.told(Load)[0].threads == 3
    assert process.told(Settings) == []
    await first.stop(1.0)
    await second.stop(1.0)


@in_loop
async def test_a_failed_load_says_so_before_the_process_is_gone() -> None:
    async def lingers(process: FakeWorker) -> None:
        process.hello()
        process.say(LoadFailed("OutOfMemory", "CUDA out of memory"))

    bench = Bench(lingers)
    worker = bench.worker()
    start = asyncio.ensure_future(worker.start())
    await until(lambda: worker.state is WorkerState.LOADING)
    await turns()
    bench.clock.advance(61)
    with pytest.raises(errors.OutOfMemory, match="CUDA"):
        await start
    await bench.end(worker)


JOINING = [EachStep(3), FreeRunning(3)]


@pytest.mark.parametrize("turn", JOINING, ids=lambda turn: turn.loop)
@in_loop
async def test_where_requests_join_each_answer_makes_room_for_one(turn: Turn) -> None:
    bench = Bench(turn=turn)
    for number in range(5):
        bench.put(b"%d" % number)
    worker, process = await bench.started()
    first = await process.hears(Batch)
    assert [item.request for item in first.items] == [1, 2, 3]
    process.say(Reply(2, body=b"two"))
    second = await process.hears(Batch)
    assert [item.request for item in second.items] == [4]
    process.say(Failure(1, "HandlerFailed", "no"))
    third = await process.hears(Batch)
    assert [item.request for item in third.items] == [5]
    process.say(*[Reply(number, body=b"end") for number in (5, 4, 3)])
    assert (await bench.requests[4].answer())[0].body == b"end"
    assert isinstance(bench.requests[0].error, errors.HandlerFailed)
    assert worker.room == 3
    worker.kill(errors.Draining("test"))
    await bench.end(worker)


@in_loop
async def test_what_joined_and_had_not_begun_goes_back_and_the_rest_is_answered() -> None:
    """P04: what the common page says counts for each batch that joined."""
    bench = Bench(turn=EachStep(4))
    worker, process = await bench.started()
    began, joined, streaming = bench.put(b"0"), bench.put(b"1"), bench.put(b"2")
    first, _, third = [await process.hears(Batch) for _ in range(3)]
    process.begin(first.step)
    process.say(Reply(third.items[0].request, body=b"chunk", more=True))
    await turns()
    process.exit(-9)
    await bench.end(worker)
    assert isinstance(began.error, errors.WorkerDied)
    assert isinstance(streaming.error, errors.WorkerDied), "a chunk says as much"
    assert joined.state is State.QUEUED


@in_loop
async def test_a_cancelled_request_keeps_its_place_until_the_worker_has_left_it() -> None:
    bench = Bench(turn=FreeRunning(1))
    worker, process = await bench.started()
    gone = bench.put()
    await process.hears(Batch)
    gone.cancel()
    waiting = bench.put()
    assert await process.hears(Cancel) == Cancel(1)
    assert waiting.state is State.QUEUED
    process.say(Failure(1, "Cancelled", "gone"))
    assert [item.request for item in (await process.hears(Batch)).items] == [2]
    worker.kill(errors.Draining("test"))
    await bench.end(worker)


@in_loop
async def test_a_worker_hangs_when_it_says_nothing_of_what_it_runs_though_more_joins() -> None:
    """W05."""
    bench = Bench(turn=FreeRunning(10))
    worker, process = await bench.started()
    bench.put()
    await process.hears(Batch)
    for _ in range(4):
        bench.clock.advance(6.0)
        bench.put()
        await turns()
    bench.clock.advance(HANG_GRACE_SECONDS)
    bench.clock.advance(STACK_DUMP_SECONDS)
    await until(worker.dead.done)
    assert isinstance(worker.dead.result(), errors.WorkerTimeout)
    assert process.was_killed


@in_loop
async def test_a_worker_that_answers_some_does_not_hang() -> None:
    bench = Bench(turn=FreeRunning(10))
    worker, process = await bench.started()
    for _ in range(8):
        number = bench.put().number
        await process.hears(Batch)
        bench.clock.advance(15.0)
        process.say(Reply(number, body=b"x"))
        await until(lambda: worker.running == 0)
    assert worker.room == 10
    worker.kill(errors.Draining("test"))
    await bench.end(worker)
