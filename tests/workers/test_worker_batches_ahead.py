"""Batches that stand behind one another in a worker's socket, with the test at the daemon's end of it."""

from __future__ import annotations

from torchd_protos.frames import Batch, Call, Cancel, Failure, Item, Part, Replies, encode


def test_batches_that_come_together_are_answered_each_on_its_own(loaded) -> None:
    worker = loaded("naps")
    steps = [worker.send_batch(b"0", first=number) for number in range(1, 6)]
    replies = [worker.until(Replies) for _ in steps]
    assert [list(said.requests) for said in replies] == [[1], [2], [3], [4], [5]]
    assert all(said.end_of_step for said in replies)


def test_what_is_cancelled_behind_a_running_batch_is_not_run(loaded) -> None:
    """K01: it was sent ahead and had not begun."""
    worker = loaded("naps")
    first = worker.send_batch(b"0.5", first=1)
    worker.until_begun(first)
    worker.send_batch(b"0", first=2)
    worker.send(Cancel(2))
    assert list(worker.until(Replies).requests) == [1]
    failure = worker.until(Failure)
    assert (failure.request, failure.kind) == (2, "Cancelled")
    assert worker.until(Replies).end_of_step
    assert bytes(worker.run(b"0", first=3)[0].body) == b"2"


def test_an_answer_does_not_wait_for_a_slow_batch_behind_it(loaded) -> None:
    worker = loaded("naps")
    frames = [
        encode(Batch(number, [Item(number, 60_000, Call(request_id=f"r{number}", parts=[Part("body", body=body)]))]))
        for number, body in ((1, b"0"), (2, b"20"))
    ]
    worker.socket.sendall(b"".join(bytes(buffer) for frame in frames for buffer in frame))
    assert list(worker.until(Replies).requests) == [1]
