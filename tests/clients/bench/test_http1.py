"""Our side of HTTP/1.1, by hand."""

from __future__ import annotations

import pytest

from torchd_clients.bench.http1 import BadAnswer, Http1Client

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 \r\ntransfer-encoding: chunked\r\n\r\n3;x=1\r\nhel\r\n6\r\nlo0\r\n\r\r\n0\r\n\r\n"


def feed(client: Http1Client, data: bytes, size: int) -> list[str]:
    answers = (client.feed(data[at : at + size]) for at in range(0, len(data), size))
    return [one for one in answers if one is not None]


@pytest.mark.parametrize("answer", [PLAIN, CHUNKED, b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_answer_may_come_in_pieces_of_any_size(answer: bytes, size: int) -> None:
    client = Http1Client(expect=b"hello")
    for _ in range(2):
        assert feed(client, answer, size) == [""]
    assert not client.closes


def test_an_empty_answer_ends_with_its_head() -> None:
    assert Http1Client().feed(b"HTTP/1.1 200 OK\r\ncontent-length:0\r\n\r\n") == ""


def test_a_failure_is_told_by_status_and_type() -> None:
    body = b'{"code": 503, "type": "ServiceUnavailableException", "message": "request 17 is one too many"}'
    head = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: %d\r\n\r\n"
    assert Http1Client().feed(head % len(body) + body) == "HTTP 503 ServiceUnavailableException"
    assert Http1Client().feed(head % 2 + b"no") == "HTTP 503"


def test_an_answer_without_the_expected_text_is_a_failure() -> None:
    assert Http1Client(b"bye").feed(PLAIN) == "an answer without 'bye'"


def test_a_server_that_will_close_is_heard() -> None:
    client = Http1Client()
    client.feed(b"HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-length: 0\r\n\r\n")
    assert client.closes


@pytest.mark.parametrize("answer", [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_what_is_no_answer_is_not_believed(answer: bytes) -> None:
    with pytest.raises(BadAnswer):
        Http1Client().feed(answer)
