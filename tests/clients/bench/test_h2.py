"""Our side of HTTP/2: frames by hand, and a real gRPC server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from clients.bench.known_delay import SERVICE
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from hpack import Decoder, Encoder

from torchd_clients.bench.h2 import PREFACE, Http2Client, ProtocolError
from torchd_clients.bench.load import Load
from torchd_clients.bench.measurement import Measurement
from torchd_clients.bench.run import run_load
from torchd_clients.bench.target import Input, Target
from torchd_protos.inference_pb2 import PredictionResponse, PredictionsRequest

FIELDS = ((b":method", b"POST"), (b":path", b"/a/b"), (b"authorization", b"Bearer " + b"x" * 200))
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
Sent = tuple[int, int, int, bytes]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def setting(name: int, value: int) -> bytes:
    return name.to_bytes(2, "big") + value.to_bytes(4, "big")


def block(**fields: str) -> bytes:
    """A header block as a server without a table writes it, in Huffman's code."""
    encoder = Encoder()
    encoder.header_table_size = 0
    return encoder.encode([(name.replace("_", "-"), value) for name, value in fields.items()])


def sent(client: Http2Client) -> list[Sent]:
    """The frames that are to be written: kind, flags, stream, payload."""
    data = bytes(client.outgoing).removeprefix(PREFACE)
    client.outgoing.clear()
    frames = []
    while data:
        size = int.from_bytes(data[:3], "big")
        frames.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
        data = data[9 + size :]
    return frames


def ready(*settings: bytes, expect: bytes = b"") -> Http2Client:
    client = Http2Client(FIELDS, expect)
    client.feed(frame(SETTINGS, 0, 0, b"".join(settings)))
    assert client.is_ready
    sent(client)
    return client


def answer(stream: int, body: bytes = b"\0\0\0\0\2ok", trailers: bytes | None = None) -> bytes:
    head, trailers = block(content_type="application/grpc"), trailers or block(grpc_status="0")
    return frame(HEADERS, 4, stream, head) + frame(DATA, 0, stream, body) + frame(HEADERS, 5, stream, trailers)


def test_the_first_call_teaches_the_server_its_fields_and_the_others_only_point_at_them() -> None:
    client, decoder = ready(), Decoder()
    for number in (1, 3, 5):
        assert client.start(b"message", 0.0) == number
        head, data = sent(client)
        assert tuple(decoder.decode(head[3], raw=True)) == FIELDS
        assert data == (DATA, 1, number, b"message")
        assert len(head[3]) < 10 or number == 1


def test_a_server_without_a_table_is_sent_literals() -> None:
    client, decoder = ready(setting(1, 0)), Decoder()
    decoder.max_allowed_table_size = 0
    for _ in range(2):
        client.start(b"", 0.0)
        assert tuple(decoder.decode(sent(client)[0][3], raw=True)) == FIELDS


def test_an_answer_may_come_in_pieces_of_any_size() -> None:
    whole = answer(1, b"\0\0\0\1\0" + b"a" * 256) + answer(3)
    for size in (1, 2, 9, 100, len(whole)):
        client = ready(expect=b"")
        client.start(b"", 1.0)
        client.start(b"", 2.0)
        ended = [one for at in range(0, len(whole), size) for one in client.feed(whole[at : at + size])]
        assert [(one.started, one.reason) for one in ended] == [(1.0, ""), (2.0, "")]
        assert client.calls == 0


def test_the_expected_text_is_looked_for_in_all_pieces_of_the_answer() -> None:
    for text, reason in ((b"needle", ""), (b"thread", "an answer without 'thread'")):
        client = ready(expect=text)
        client.start(b"", 0.0)
        whole = answer(1, b"\0\0\0\0\x10" + b"hay need")[: -len(block(grpc_status="0")) - 9]
        more = frame(DATA, 0, 1, b"le stack") + frame(HEADERS, 5, 1, block(grpc_status="0"))
        ended = [one for at in range(len(whole + more)) for one in client.feed((whole + more)[at : at + 1])]
        assert [one.reason for one in ended] == [reason]


def test_failures_are_told_by_code_and_message_and_remembered_alike() -> None:
    client = ready()
    failed = block(grpc_status="3", grpc_message="no%20such thing")
    for _ in range(2):
        number = client.start(b"", 0.0)
        assert [one.reason for one in client.feed(answer(number, trailers=failed))] == [
            "INVALID_ARGUMENT: no such thing"
        ]


def test_trailers_alone_and_trailers_in_two_frames_are_read() -> None:
    client = ready()
    client.start(b"", 0.0)
    client.start(b"", 0.0)
    only = block(grpc_status="8", grpc_message="full")
    ended = client.feed(frame(HEADERS, 5, 1, only))
    ended += client.feed(frame(HEADERS, 1, 3, only[:3]) + frame(CONTINUATION, 4, 3, only[3:]))
    assert [one.reason for one in ended] == ["RESOURCE_EXHAUSTED: full"] * 2


def test_ok_without_a_message_and_an_answer_that_is_no_grpc_are_failures() -> None:
    client = ready()
    client.start(b"", 0.0)
    client.start(b"", 0.0)
    ended = client.feed(frame(HEADERS, 5, 1, block(grpc_status="0")))
    ended += client.feed(frame(HEADERS, 5, 3, Encoder().encode([(":status", "404")])))
    assert [one.reason for one in ended] == ["status OK without a message", "no grpc-status (HTTP status 404)"]


def test_a_large_message_waits_for_the_windows_of_stream_and_connection() -> None:
    client = ready(setting(4, 10), setting(5, 16_384))
    client.start(b"a" * 25, 0.0)
    assert [one[3] for one in sent(client)[1:]] == [b"a" * 10]
    client.feed(frame(WINDOW_UPDATE, 0, 1, (10).to_bytes(4, "big")))
    assert sent(client) == [(DATA, 0, 1, b"a" * 10)]
    client.feed(frame(SETTINGS, 0, 0, setting(4, 20)))  # ten more for every stream there is
    assert sent(client)[1:] == [(DATA, 1, 1, b"a" * 5)]
    client = ready(setting(4, 1_000_000))
    client.start(b"b" * 70_000, 0.0)
    assert sum(len(one[3]) for one in sent(client)[1:]) == 65_535
    client.feed(frame(WINDOW_UPDATE, 0, 0, (100_000).to_bytes(4, "big")))
    assert [(one[1], len(one[3])) for one in sent(client)] == [(1, 70_000 - 65_535)]


def test_a_ping_is_answered_and_an_answer_to_one_is_not() -> None:
    client = ready()
    client.feed(frame(PING, 0, 0, b"12345678") + frame(PING, 1, 0, b"87654321"))
    assert sent(client) == [(PING, 1, 0, b"12345678")]


def test_after_goaway_older_calls_end_and_newer_ones_were_never_seen() -> None:
    client = ready()
    client.start(b"", 1.0)
    client.start(b"", 2.0)
    ended = client.feed(frame(GOAWAY, 0, 0, (1).to_bytes(4, "big") + bytes(4)))
    assert client.is_leaving
    assert [(one.started, one.unseen) for one in ended] == [(2.0, True)]
    assert [(one.started, one.reason) for one in client.feed(answer(1))] == [(1.0, "")]


def test_a_reset_ends_a_call_and_a_refused_one_was_never_seen() -> None:
    client = ready()
    client.start(b"", 1.0)
    client.start(b"", 2.0)
    ended = client.feed(frame(RST_STREAM, 0, 1, bytes([0, 0, 0, 2])) + frame(RST_STREAM, 0, 3, bytes([0, 0, 0, 7])))
    assert [(one.reason, one.unseen) for one in ended] == [
        ("RST_STREAM with code 2", False),
        ("RST_STREAM with code 7", True),
    ]


def test_a_call_given_up_is_reset_and_its_late_answer_is_nobodys() -> None:
    client = ready()
    number = client.start(b"", 1.0)
    assert client.overdue(1.5) == [(number, 1.0)]
    sent(client)
    client.cancel(number)
    assert sent(client) == [(RST_STREAM, 0, 1, bytes([0, 0, 0, 8]))]
    assert client.feed(answer(number)) == []


@pytest.mark.parametrize(
    "bytes_", [frame(CONTINUATION, 4, 1, b""), frame(5, 4, 1, b"\0\0\0\2"), frame(HEADERS, 5, 1, b"\xff\xff\xff")]
)
def test_a_server_that_breaks_the_protocol_is_not_believed(bytes_: bytes) -> None:
    client = ready()
    client.start(b"", 0.0)
    with pytest.raises(ProtocolError):
        client.feed(bytes_)


# Against gRPC's own server.

Predict = Callable[[PredictionsRequest, Any], PredictionResponse]


@contextmanager
def grpc_server(predict: Predict, *options: tuple[str, int]) -> Iterator[str]:
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool, options=[("grpc.max_receive_message_length", -1), *options])
        method = grpc.unary_unary_rpc_method_handler(
            predict, PredictionsRequest.FromString, PredictionResponse.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Predictions": method}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def ask(address: str, body: bytes, load: Load, expect: bytes = b"") -> Measurement:
    inputs = (Input(body, name="data"),)
    return run_load(Target("grpc", address, "m", inputs, version="2.0", token="secret", expect=expect), load)


def test_grpcs_own_server_gets_the_request_and_its_metadata() -> None:
    seen = []

    def predict(request: PredictionsRequest, context: Any) -> PredictionResponse:
        seen.append((request, dict(context.invocation_metadata())["authorization"]))
        return PredictionResponse(prediction=b"good")

    with grpc_server(predict) as address:
        measured = ask(address, b"hello", Load(clients=3, requests=50, processes=1), expect=b"good")
    assert (measured.answered, measured.failed) == (50, 0)
    wanted = PredictionsRequest(model_name="m", model_version="2.0", input={"data": b"hello"})
    assert all(request == wanted and token == "Bearer secret" for request, token in seen)
    assert len(seen) == 50


def test_a_mebibyte_goes_there_and_back() -> None:
    body = bytes(range(256)) * 4096

    def predict(request: PredictionsRequest, context: Any) -> PredictionResponse:
        good = request.input["data"] == body
        return PredictionResponse(prediction=body[::-1] if good else b"another body")

    with grpc_server(predict) as address:
        measured = ask(address, body, Load(clients=4, requests=40, processes=1), expect=body[::-1][-5000:])
    assert (measured.answered, measured.errors) == (40, {})


def test_errors_of_the_server_are_counted_by_code_and_reason() -> None:
    turn, lock = [0], threading.Lock()

    def predict(request: PredictionsRequest, context: Any) -> PredictionResponse:
        with lock:
            turn[0] += 1
            number = turn[0]
        if number % 3 == 1:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not like this: ü\nat line 3")
        if number % 3 == 2:
            detail = AnyMessage()
            detail.Pack(ErrorInfo(reason="QUEUE_FULL", domain="torchd", metadata={"limit": "x" * 200}))
            status = Status(code=8, message=f"the queue has {number}", details=[detail])
            context.abort_with_status(rpc_status.to_status(status))
        return PredictionResponse(prediction=b"good")

    with grpc_server(predict) as address:
        measured = ask(address, b"", Load(clients=2, requests=30, processes=1))
    assert measured.answered == 10
    assert measured.errors == {"INVALID_ARGUMENT: not like this: ü": 10, "RESOURCE_EXHAUSTED: QUEUE_FULL": 10}


def test_a_method_that_is_not_there_is_unimplemented() -> None:
    with grpc_server(lambda request, context: PredictionResponse()) as address:
        target = Target("grpc", address, "m", (Input(b""),), path="/no.such/Method")
        measured = run_load(target, Load(requests=2, processes=1))
    assert list(measured.errors) == ["UNIMPLEMENTED: Method not found!"]


def test_a_server_that_sends_its_connections_away_loses_no_call() -> None:
    def predict(request: PredictionsRequest, context: Any) -> PredictionResponse:
        return PredictionResponse(prediction=b"good")

    age = (("grpc.max_connection_age_ms", 200), ("grpc.max_connection_age_grace_ms", 5000))
    with grpc_server(predict, *age) as address:
        measured = ask(address, b"", Load(clients=4, seconds=2.0, processes=1))
    assert measured.errors == {}
    assert measured.answered > 20


def test_a_server_with_few_streams_gets_no_more_at_once() -> None:
    running, most, lock = [0], [0], threading.Lock()

    def predict(request: PredictionsRequest, context: Any) -> PredictionResponse:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        threading.Event().wait(0.005)
        with lock:
            running[0] -= 1
        return PredictionResponse(prediction=b"good")

    with grpc_server(predict, ("grpc.max_concurrent_streams", 2)) as address:
        measured = ask(address, b"", Load(clients=6, requests=60, processes=1))
    assert (measured.answered, measured.errors) == (60, {})
    assert most[0] == 2
