"""A real worker process: what it answers, and that no handler can break it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from torchd_protos.frames import (
    PROTOCOL_VERSION,
    Batch,
    Call,
    Cancel,
    Failure,
    Header,
    Hello,
    Item,
    Loaded,
    Log,
    Metric,
    Part,
    Reply,
    Settings,
    Unload,
    encode,
)


def bodies(answers):
    return [bytes(answer.body) for answer in answers]


def test_it_says_hello_loads_answers_and_leaves_when_told(start):
    worker = start("echo")
    assert worker.load() == Loaded()
    assert worker.seen[0] == Hello(PROTOCOL_VERSION, 7, 0, worker.process.pid)
    assert worker.ask(b"hello") == Reply(1, end_of_step=True, body=b"hello")
    worker.send(Unload())
    assert worker.end()[0] == 0


def test_a_batch_is_answered_in_order_and_ends_once(loaded):
    worker = loaded("echo")
    answers = worker.run(b"a", b"b", b"c", first=10)
    assert [(answer.request, bytes(answer.body)) for answer in answers] == [(10, b"a"), (11, b"b"), (12, b"c")]
    assert [answer.end_of_step for answer in answers] == [False, False, True]


def test_a_large_body_comes_back_whole(loaded):
    body = os.urandom(3_000_000)
    assert loaded("echo").ask(body).body == body


def test_a_batch_sent_ahead_runs_after_the_first(loaded):
    worker = loaded("misbehave")
    worker.send_batch(b"wait", first=1)
    worker.send_batch(b"next", first=2)
    worker.until_begun(1)
    worker.send(Cancel(1))
    assert [answer.request for answer in worker.answers()] == [1]
    worker.until_begun(2)
    assert bodies(worker.answers()) == [b"next"]


def test_an_unload_lets_the_running_batch_finish(loaded):
    worker = loaded("misbehave")
    worker.send_batch(b"wait")
    worker.until_begun()
    worker.send(Unload())
    worker.send(Cancel(1))
    assert len(worker.answers()) == 1
    assert worker.end()[0] == 0


def test_json_answers_are_indented_as_torchserve_does(loaded):
    assert loaded("sum").ask(b"[1, 2, 3]").body == json.dumps({"sum": 6}, indent=2).encode()


def test_the_model_config_reaches_the_handler(loaded):
    assert json.loads(bytes(loaded("sum", config_json='{"multiplier": 2}').ask(b"[1, 2]").body)) == {"sum": 6}


def test_decoded_input_gives_json_and_text_and_leaves_the_rest(loaded):
    worker = loaded("sum", decode_input=True)
    worker.send(Batch(1, [Item(1, 60_000, Call(parts=[Part("body", "application/json", b"[4, 5]")]))]))
    assert json.loads(bytes(worker.answers()[0].body)) == {"sum": 9}


def test_undecodable_json_reaches_the_handler_as_bytes_with_a_warning(loaded):
    worker = loaded("echo", decode_input=True)
    worker.send(Batch(1, [Item(1, 60_000, Call(parts=[Part("body", "application/json", b"{")]))]))
    assert bodies(worker.answers()) == [b"{"]
    (log,) = [message for message in worker.seen if isinstance(message, Log)]
    assert log.level == 30
    assert "part 'body' is not the application/json" in log.text


def test_headers_keep_their_case_and_stand_beside_the_parts_content_types(loaded):
    worker = loaded("misbehave")
    call = Call(
        headers=[Header("X-Trace", "1"), Header("x-trace", "2")], parts=[Part("body", "text/plain", b"headers")]
    )
    worker.send(Batch(1, [Item(1, 60_000, call)]))
    assert json.loads(bytes(worker.answers()[0].body)) == {"body": {"content-type": "text/plain"}, "x-trace": "2"}


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (b"raise", "HandlerFailed", "ValueError: no such colour"),
        (b"unprintable", "HandlerFailed", "UnprintableError: <its str() raised RuntimeError>"),
        (b"interrupt", "HandlerFailed", "KeyboardInterrupt"),
        (b"base", "HandlerFailed", "OwnError: mine"),
        (b"recursion", "HandlerFailed", "RecursionError: maximum recursion depth exceeded"),
        (b"group", "HandlerFailed", "ExceptionGroup: both (2 sub-exceptions)"),
        (b"memory", "OutOfMemory", "MemoryError"),
        (b"exit", "HandlerExit", "SystemExit: 0"),
    ],
)
def test_what_a_handler_raises_fails_its_whole_batch_and_nothing_else(loaded, act, kind, message):
    """H01, H03, W10."""
    worker = loaded("misbehave")
    first, second = worker.run(b"fine", act)
    assert (first.kind, second.kind) == (kind, kind)
    assert first.message == second.message
    assert first.message.startswith(message)
    assert 'File "handler.py", line' in first.traceback
    assert "torchd_workers" not in first.traceback
    assert second.traceback == ""
    assert worker.ask(b"alive").body == b"alive"


def test_the_text_of_an_exception_is_capped(loaded):
    """H03."""
    failure = loaded("misbehave").ask(b"long")
    assert len(failure.message) == 1024
    assert len(failure.traceback) <= 16 * 1024


def test_a_prediction_exception_brings_its_status_and_message(loaded):
    failure = loaded("misbehave").ask(b"prediction")
    assert (failure.kind, failure.message, failure.status) == ("PredictionFailed", "not today", 429)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (b"none", "the handler returned None; it must return a list with one answer per request, here 2"),
        (b"dict", "the handler returned a dict; "),
        (b"tuple", "the handler returned a tuple; "),
        (b"generator", "the handler returned a generator; "),
        (b"coroutine", "the handler returned a coroutine; "),
        (b"short", "the handler returned 1 answers to a batch of 2; "),
        (b"long list", "the handler returned 3 answers to a batch of 2; "),
    ],
)
def test_an_output_that_cannot_be_paired_fails_the_batch(loaded, output, message):
    """H04, H05."""
    worker = loaded("misbehave")
    answers = worker.run(output, b"fine")
    kind = "WrongCount" if "a batch of" in message else "NoList"
    assert [answer.kind for answer in answers] == [kind, kind]
    assert all(answer.message.startswith(message) for answer in answers)
    assert worker.ask(b"alive").body == b"alive"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (b"object", "an object cannot be sent (TypeError"),
        (b"nan", "a dict cannot be sent (ValueError"),
        (b"set", "a set cannot be sent (TypeError"),
        (b"cyclic", "a list cannot be sent (ValueError: Circular reference"),
        (b"surrogate", "a str cannot be sent (UnicodeEncodeError"),
        (b"crlf", "the handler set the response header 'X-A' to 'a\\r\\nSet-Cookie: b'"),
        (b"header name", "the handler set a response header named 'X A'"),
        (b"header size", "the handler set 1000003 bytes of response headers"),
        (b"header type", "the handler set the response header 'X-A' to 1;"),
        (b"header text", "the handler set the response header 'X-A' to 'caf\u00e9'"),
        (b"length", "the handler set the response header 'Content-Length', which only the server may set"),
        (b"chunked", "the handler set the response header 'Transfer-Encoding'"),
        (b"status 99", "the handler set the response status 99"),
        (b"status 1000", "the handler set the response status 1000"),
        (b"status text", "the handler set the response status '200'"),
        (b"phrase", "the handler set the reason phrase"),
    ],
)
def test_an_answer_that_cannot_be_sent_fails_only_its_own_request(loaded, act, message):
    """H06, H14, S40."""
    worker = loaded("misbehave")
    before, bad, after = worker.run(b"before", act, b"after")
    assert (bytes(before.body), bytes(after.body)) == (b"before", b"after")
    assert bad.kind == ("Unsendable" if "cannot be sent" in message else "BadOutput")
    assert bad.message.startswith(message)
    assert worker.ask(b"alive").body == b"alive"


def test_a_too_large_answer_fails_only_its_own_request(loaded):
    """H07."""
    first, second = loaded("misbehave", max_response_bytes=2999).run(b"large", b"fine")
    assert (first.kind, bytes(second.body)) == ("ResponseTooLarge", b"fine")
    assert first.message == "the answer has 3000 bytes; the limit is 2999 (max_response_size)"


def test_status_phrase_and_headers_travel_with_their_own_answer(loaded):
    teapot, headed, plain = loaded("misbehave").run(b"teapot", b"good header", b"plain")
    assert (teapot.status, teapot.reason, list(teapot.headers)) == (418, "I am a teapot", [])
    assert (headed.status, list(headed.headers)) == (0, [Header("X-Good", "yes")])
    assert (plain.status, plain.reason, list(plain.headers)) == (0, "", [])


def test_patching_the_standard_library_does_not_reach_the_protocol(loaded):
    """W23."""
    worker = loaded("misbehave")
    assert worker.ask(b"patch").body == b"ok"
    assert worker.ask(b"raise").kind == "HandlerFailed"
    assert worker.ask(b"alive").body == b"alive"
    worker.socket.close()
    assert worker.process.wait(timeout=60) == 0


def test_a_sync_handler_sees_that_its_request_is_cancelled(loaded):
    worker = loaded("misbehave")
    worker.send_batch(b"wait", b"fine")
    worker.until_begun()
    worker.send(Cancel(1))
    cancelled, fine = worker.answers()
    assert (cancelled.kind, bytes(fine.body)) == ("Cancelled", b"fine")


def test_a_handler_sees_how_long_its_request_may_take(loaded):
    worker = loaded("misbehave")
    worker.send_batch(b"wait", remaining_ms=50)
    assert bodies(worker.answers()) == [b"deadline"]


def test_prints_are_no_protocol(loaded):
    """H09, H10, H11."""
    worker = loaded("misbehave")
    assert worker.ask(b"good header").body == b"ok"
    worker.send_batch(b"print")
    assert worker.process.stdout.readline() == b"[METRICS]a.b:1|#x:y|#type:COUNTER\n"
    assert worker.process.stdout.readline() == b"Torch worker started.\n"
    assert len(worker.process.stdout.readline()) == 100_001
    assert bodies(worker.answers()) == [b"ok"]
    assert worker.ask(b"full").body == b"ok"
    assert worker.run(b"print", b"x")[0].kind == "HandlerFailed"  # its own print raised: no space left on device
    assert worker.ask(b"alive").body == b"alive"


def test_log_records_travel_as_frames(loaded):
    worker = loaded("misbehave")
    worker.ask(b"log")
    [record] = [message for message in worker.seen if isinstance(message, Log)]
    assert (record.level, record.logger, record.text) == (20, "my.model", "a line")
    assert record.request_id.startswith("r"), "it names the request that was running"


def test_a_flood_of_log_records_is_cut(loaded):
    """H12."""
    worker = loaded("misbehave")
    worker.ask(b"log much")
    sent = sum(isinstance(message, Log) for message in worker.seen)
    assert 1000 <= sent < 5000


def test_metrics_travel_as_frames_and_wrong_use_is_logged(loaded):
    worker = loaded("misbehave")
    worker.ask(b"numbers")
    metrics = [message for message in worker.seen if isinstance(message, Metric)]
    names = [(metric.name, metric.value, metric.unit, metric.type) for metric in metrics[:3]]
    assert names == [
        ("Seen", 2, "Count", "counter"),
        ("Step", 1.5, "Milliseconds", "gauge"),
        ("Depth", 3, "Count", "counter"),
    ]
    assert list(metrics[0].dimensions) == [Header("ModelName", "m"), Header("Level", "Model")]
    assert metrics[0].request_id == "r1"
    assert len(metrics) == 3
    assert worker.seen[-1].handler_us > 0
    assert sum(isinstance(message, Log) for message in worker.seen) == 2


def test_a_forked_child_neither_speaks_for_its_parent_nor_holds_the_socket(loaded):
    worker = loaded("misbehave")
    assert json.loads(bytes(worker.ask(b"fork").body)) == {"child": 0}
    assert worker.ask(b"alive").body == b"alive"
    assert not any(isinstance(message, Log) for message in worker.seen)


def test_a_thread_that_outlives_its_batch_cannot_answer_another_request(loaded):
    """H16."""
    worker = loaded("misbehave")
    assert worker.run(b"late", first=1)[0].body == b"ok"
    (answer,) = worker.run(b"late result", first=2)
    assert bytes(answer.body) == b"RuntimeError: request 'r1' has had its last answer; no chunk can follow"


def test_a_worker_whose_daemon_goes_away_leaves_at_once(loaded):
    worker = loaded("misbehave")
    worker.send_batch(b"wait")
    worker.until_begun()
    worker.socket.close()
    assert worker.end()[0] == 0


def test_half_a_frame_from_a_handler_is_never_an_answer(loaded):
    """W12."""
    worker = loaded("misbehave")
    worker.send_batch(b"half")
    worker.until_begun()
    with pytest.raises(EOFError):
        worker.next()
    assert worker.end()[0] == -signal.SIGKILL


def test_a_handler_that_closes_every_descriptor_ends_its_worker(loaded):
    """W20."""
    worker = loaded("misbehave")
    worker.send_batch(b"close")
    worker.until_begun()
    with pytest.raises((EOFError, ConnectionResetError)):
        worker.next()
    assert worker.end()[0] == 70


def test_bytes_that_are_no_frame_end_the_worker_with_one_line(loaded):
    worker = loaded("echo")
    worker.socket.sendall(b"\xff" * 20)
    status, _, err = worker.end()
    assert status == 70
    assert err.count("\n") == 1
    assert "ProtocolError: frame of unknown kind 255" in err


def test_a_frame_only_workers_send_ends_the_worker(loaded):
    worker = loaded("echo")
    worker.send(Loaded())
    status, _, err = worker.end()
    assert (status, "the daemon sent a Loaded" in err) == (70, True)


def test_half_a_frame_waits_for_the_rest(loaded):
    worker = loaded("echo")
    frame = b"".join(encode(Batch(1, [Item(1, 60_000, Call(parts=[Part("body", body=b"slowly")]))])))
    for byte in frame:
        worker.socket.sendall(bytes([byte]))
    assert bodies(worker.answers()) == [b"slowly"]


def test_stacks_are_told_at_sigusr2(loaded):
    worker = loaded("misbehave")
    worker.send_batch(b"wait")
    assert worker.process.stdout.readline() == b"waiting\n"
    os.kill(worker.process.pid, signal.SIGUSR2)
    lines = iter(worker.process.stderr.readline, b"")
    assert any(b"in wait_for_cancel" in line for line in lines)
    worker.send(Cancel(1))
    worker.answers()


def test_the_process_writes_no_core_and_no_files_others_can_read(loaded):
    worker = loaded("echo")
    process = Path("/proc", str(worker.process.pid))
    limits = (process / "limits").read_text()
    assert next(line for line in limits.splitlines() if line.startswith("Max core")).split()[4:6] == ["0", "0"]
    assert "Umask:\t0077" in (process / "status").read_text()


def test_an_alarm_that_rings_between_batches_costs_nothing(loaded):
    """H17."""
    worker = loaded("misbehave")
    assert worker.ask(b"alarm").body == b"ok"
    assert "late alarm" in worker.until(Log).text
    assert worker.ask(b"alive").body == b"alive"


def test_a_thread_setting_without_torch_changes_nothing(loaded):
    worker = loaded("misbehave")
    worker.send(Settings(threads=2))
    assert worker.ask(b"modules").body == b"false"
    assert isinstance(worker.ask(b"threads"), Failure)
