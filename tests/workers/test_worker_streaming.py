"""Streamed answers of a real worker: order, credit, cancel and deadline."""

from __future__ import annotations

import json

from torchd_protos.frames import Cancel, Credit, Failure, Reply

WINDOW = 1024 * 1024
CHUNK = 128 * 1024


def asked(chunks, size):
    return json.dumps({"chunks": chunks, "size": size}).encode()


def take(worker, count):
    return [worker.until(Reply, Failure) for _ in range(count)]


def fill_window(worker, request=1):
    """Takes what fits into the window; one more chunk would be the handler's to wait with."""
    chunks = take(worker, WINDOW // CHUNK)
    assert all(chunk.more and chunk.request == request for chunk in chunks)


def is_silent(worker):
    """A stopped stream says nothing: whatever comes next answers what the test does afterwards."""
    worker.socket.settimeout(0.3)
    try:
        worker.until(Reply, Failure)
    except TimeoutError:
        return True
    finally:
        worker.socket.settimeout(60)
    return False


def test_chunks_come_in_order_before_the_last_answer(loaded):
    worker = loaded("stream")
    worker.send_batch(asked(3, 1))
    chunks = take(worker, 4)
    assert [bytes(chunk.body) for chunk in chunks] == [b"0", b"1", b"2", b"end"]
    assert [(chunk.more, chunk.end_of_step) for chunk in chunks] == [(True, False)] * 3 + [(False, True)]


def test_the_chunks_of_a_batch_reach_each_their_own_request(loaded):
    worker = loaded("stream")
    worker.send_batch(asked(2, 1), asked(2, 2), first=5)
    chunks = take(worker, 6)
    assert [(chunk.request, bytes(chunk.body)) for chunk in chunks] == [
        (5, b"0"),
        (6, b"00"),
        (5, b"1"),
        (6, b"11"),
        (5, b"end"),
        (6, b"end"),
    ]


def test_a_stream_stops_at_its_window_and_goes_on_with_credit(loaded):
    worker = loaded("stream")
    worker.send_batch(asked(WINDOW // CHUNK + 2, CHUNK))
    fill_window(worker)
    assert is_silent(worker)
    worker.send(Credit(1, CHUNK))
    (chunk,) = take(worker, 1)
    assert chunk.more
    assert is_silent(worker)
    worker.send(Credit(1, WINDOW))
    assert [bytes(answer.body[:3]) for answer in take(worker, 2)] == [b"999", b"end"]


def test_a_chunk_larger_than_the_window_passes(loaded):
    worker = loaded("stream")
    worker.send_batch(asked(1, 2 * WINDOW))
    assert [len(answer.body) for answer in take(worker, 2)] == [2 * WINDOW, 3]


def test_a_cancel_releases_a_stream_that_waits_for_credit(loaded):
    """H13."""
    worker = loaded("stream")
    worker.send_batch(asked(1000, CHUNK))
    fill_window(worker)
    worker.send(Cancel(1))
    (failure,) = worker.answers()
    assert failure.kind == "Cancelled"
    assert [bytes(answer.body) for answer in worker.run(asked(0, 0), first=2)] == [b"end"]


def test_a_cancelled_stream_that_never_ends_is_stopped(loaded):
    """H13."""
    worker = loaded("stream")
    worker.send_batch(asked(10**9, 1))
    worker.until(Reply)
    worker.send(Cancel(1))
    (failure,) = worker.answers()
    assert failure.kind == "Cancelled"


def test_a_cancelled_stream_does_not_stop_its_batch_mate(loaded):
    worker = loaded("stream")
    worker.send_batch(asked(20, CHUNK), asked(20, 1))
    worker.until_begun()
    worker.send(Cancel(1))
    cancelled, mate = worker.answers()
    assert (cancelled.kind, bytes(mate.body)) == ("Cancelled", b"end")
    mates = [answer for answer in worker.seen if isinstance(answer, Reply) and answer.request == 2 and answer.more]
    assert len(mates) == 20


def test_only_the_daemon_ends_a_stream_past_its_first_deadline(loaded):
    """The daemon moves the deadline with each chunk; the worker has no clock of its own that could cut a stream."""
    worker = loaded("stream")
    worker.send_batch(asked(WINDOW // CHUNK + 2, CHUNK), remaining_ms=1)
    fill_window(worker)
    assert is_silent(worker)
    worker.send(Credit(1, WINDOW))
    assert [answer.more for answer in take(worker, 3)] == [True, True, False]


def test_a_chunk_over_the_limit_ends_its_stream_with_that_reason(loaded):
    worker = loaded("stream", max_response_bytes=10)
    worker.send_batch(asked(5, 11), asked(2, 3))
    too_large, mate = worker.answers()
    assert (too_large.kind, bytes(mate.body)) == ("ResponseTooLarge", b"end")


def test_credit_and_cancel_for_requests_long_answered_are_ignored(loaded):
    worker = loaded("echo")
    worker.send(Cancel(99))
    worker.send(Credit(99, 1))
    assert worker.ask(b"alive").body == b"alive"
