"""The HTTP/1.1 server over real sockets, on both event loops; the reader also alone, bytes in and requests out."""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from torchd_server.surfaces.rest.http1 import Handle, HttpResponse, HttpServer, Pending
from torchd_server.surfaces.rest.http1_reader import HttpLimits, HttpRequest, RequestReader

GUARD_SECONDS = 30.0
HEAD = b"POST /x HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine on each event loop; whatever reaches the loop's exception handler fails the test."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(main: Coroutine[Any, Any, None]) -> None:
        escaped: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: escaped.append(context))
            runner.run(asyncio.wait_for(main, GUARD_SECONDS))
        assert escaped == []

    return run


async def echo(request: HttpRequest) -> HttpResponse:
    return HttpResponse(200, (), f"{request.method} {request.path} ".encode() + request.body)


def refuse(status: int, message: str) -> HttpResponse:
    return HttpResponse(status, (("content-type", "text/plain"),), message.encode())


@asynccontextmanager
async def serving(
    handle: Handle = echo, *, options: dict[str, Any] | None = None, answer_half_closed: bool = False, **limits: Any
) -> AsyncIterator[tuple[HttpServer, "Connect"]]:
    options = {"answer_half_closed": answer_half_closed, **(options or {})}
    server = HttpServer(handle, refuse, HttpLimits(**limits), **options)
    port = await server.start("127.0.0.1", 0)
    clients: list[Client] = []

    async def connect() -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
        clients.append(client)
        return client

    try:
        yield server, connect
    finally:
        await server.drain(0)
        assert server.connections == 0
        for client in clients:
            client.close()


class Client:
    """A raw client: sends bytes as they are, reads one answer at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, to: str = "GET") -> tuple[int, dict[str, str], bytes]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
        if to == "HEAD":
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b"".join([chunk async for chunk in self.chunks()])
        else:
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(lines[0].split(" ")[1]), headers, body

    async def chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        assert await self.reader.readexactly(2) == b"\r\n"

    async def ended(self) -> bool:
        """Whether the server closed without sending more."""
        return await self.reader.read() == b""

    def reset(self) -> None:
        """Leave with a RST instead of a FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


Connect = Callable[[], Awaitable[Client]]


async def all_gone(server: HttpServer) -> None:
    while server.connections:  # noqa: ASYNC110 - the server tells nobody when a connection is gone
        await asyncio.sleep(0.005)


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: a", *headers, "", ""]).encode("latin-1")


def post(path: str, body: bytes, *headers: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode("latin-1") + body


def chunked(*chunks: bytes) -> bytes:
    return CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


# Requests


def test_a_connection_serves_one_request_after_another(run: Run) -> None:
    async def main() -> None:
        async with serving() as (server, connect):
            client = await connect()
            for i in range(3):
                client.send(post(f"/{i}", b"body"))
                status, headers, body = await client.answer()
                assert (status, body) == (200, b"POST /%d body" % i)
                assert headers["connection"] == "keep-alive"
            assert server.connections == 1

    run(main())


def test_a_request_keeps_what_was_sent() -> None:
    head = b"PUT /a%2Fb?c=d&e?f HTTP/1.1\r\nHoSt: a:80\r\nX-Thing:  caf\xe9 \r\nx-thing: last\r\n"
    head += b"Content-Length: 2\r\n\r\nhi"
    (request,), refused = read_all([head], peer="1.2.3.4:5")
    assert refused is None
    assert (request.method, request.target) == ("PUT", "/a%2Fb?c=d&e?f")
    assert (request.path, request.query, request.body, request.peer) == ("/a%2Fb", "c=d&e?f", b"hi", "1.2.3.4:5")
    assert request.headers[:3] == (("HoSt", "a:80"), ("X-Thing", "café"), ("x-thing", "last"))
    assert request.header("X-THING") == "last"
    assert request.header("nothing") is None


def test_an_absolute_target_gives_the_same_path() -> None:
    """S24"""
    (request, bare), _ = read_all([b"GET http://A/b?c HTTP/1.1\r\nHost: a\r\n\r\n", get("http://a")])
    assert (request.path, request.query) == ("/b", "c")
    assert bare.path == "/"


def test_pipelined_requests_are_answered_in_order(run: Run) -> None:
    """K18, N10: two thousand requests written before the first answer is read, on four connections at once."""
    running = 0

    async def slow_echo(request: HttpRequest) -> HttpResponse:
        nonlocal running
        running += 1
        assert running <= 4
        await asyncio.sleep(0)
        running -= 1
        return await echo(request)

    async def main() -> None:
        async with serving(slow_echo) as (_, connect):
            clients = [await connect() for _ in range(4)]
            for number, client in enumerate(clients):
                client.send(b"".join(post(f"/{number}/{i}", b"%d" % i) for i in range(500)))

            async def check(number: int, client: Client) -> None:
                for i in range(500):
                    assert await client.answer() == (200, *expected(f"POST /{number}/{i} {i}".encode()))

            await asyncio.gather(*(check(number, client) for number, client in enumerate(clients)))

    run(main())


def expected(body: bytes) -> tuple[dict[str, str], bytes]:
    return {"content-length": str(len(body)), "connection": "keep-alive"}, body


def test_a_client_that_never_reads_its_pipelined_answers_is_not_read_either(run: Run) -> None:
    """K18: while an answer is being made no more than a buffer of further requests is taken in."""

    async def main() -> None:
        gate = asyncio.Event()

        async def wait(_: HttpRequest) -> HttpResponse:
            await gate.wait()
            return HttpResponse(200)

        async with serving(wait) as (_, connect):
            client = await connect()
            sock = socket.socket(fileno=socket.dup(client.writer.get_extra_info("socket").fileno()))
            sock.setblocking(False)
            sent = 0
            with sock:
                for _turn in range(100):
                    try:
                        sent += sock.send(get("/") * 50_000)
                    except BlockingIOError:
                        await asyncio.sleep(0.001)
            assert sent < 32_000_000  # what the kernel holds for both ends; without a pause it would be 100 times this
            client.reset()
            gate.set()

    run(main())


def test_http_1_0_closes_unless_asked_to_stay(run: Run) -> None:
    async def main() -> None:
        async with serving() as (_, connect):
            client = await connect()
            client.send(b"GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (await client.answer())[1]["connection"] == "keep-alive"
            client.send(b"GET /2 HTTP/1.0\r\n\r\n")
            assert (await client.answer())[1]["connection"] == "close"
            assert await client.ended()

    run(main())


def test_connection_close_is_honoured_and_nothing_after_it_runs(run: Run) -> None:
    async def main() -> None:
        async with serving() as (_, connect):
            client = await connect()
            client.send(get("/last", "Connection: close") + NEXT)
            status, headers, body = await client.answer()
            assert (status, headers["connection"], body) == (200, "close", b"GET /last ")
            assert await client.ended()

    run(main())


def test_an_answer_can_close_the_connection(run: Run) -> None:
    async def bye(_: HttpRequest) -> HttpResponse:
        return HttpResponse(404, close=True)

    async def main() -> None:
        async with serving(bye) as (_, connect):
            client = await connect()
            client.send(get("/"))
            assert (await client.answer())[1]["connection"] == "close"
            assert await client.ended()

    run(main())


def test_a_head_request_is_answered_without_a_body(run: Run) -> None:
    async def main() -> None:
        async with serving() as (_, connect):
            client = await connect()
            client.send(b"HEAD /abc HTTP/1.1\r\nHost: a\r\n\r\n" + get("/next"))
            assert (await client.answer("HEAD"))[1]["content-length"] == str(len("HEAD /abc "))
            assert (await client.answer())[2] == b"GET /next "

    run(main())


def test_a_request_to_upgrade_is_served_as_plain_http() -> None:
    """curl --http2 and Java's client ask with every request, also with a body."""
    ask = ("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk")
    requests, refused = read_all([post("/a", b"body", *ask) + get("/b", *ask) + get("/c")])
    assert refused is None
    assert [(request.path, request.body) for request in requests] == [("/a", b"body"), ("/b", b""), ("/c", b"")]
    assert requests[0].header("HTTP2-Settings") == "AAMAAABk"


def test_expect_100_continue_is_answered_once_the_head_is_accepted(run: Run) -> None:
    async def main() -> None:
        async with serving() as (_, connect):
            client = await connect()
            for _ in range(2):
                client.send(post("/", b"12345", "Expect: 100-continue")[:-5])
                assert (await client.answer())[0] == 100
                client.send(b"12345")
                assert (await client.answer())[2] == b"POST / 12345"

    run(main())


def test_a_pipelined_expectation_waits_for_the_answers_before_it(run: Run) -> None:
    async def main() -> None:
        async with serving() as (_, connect):
            client = await connect()
            client.send(get("/first") + post("/", b"12345", "Expect: 100-continue")[:-5])
            assert (await client.answer())[2] == b"GET /first "
            assert (await client.answer())[0] == 100
            client.send(b"12345")
            assert (await client.answer())[2] == b"POST / 12345"

    run(main())


def test_a_client_that_leaves_after_100_continue_costs_nothing(run: Run) -> None:
    """N12"""
    handled = []

    async def note(request: HttpRequest) -> HttpResponse:
        handled.append(request)
        return HttpResponse(200)

    async def main() -> None:
        async with serving(note) as (server, connect):
            client = await connect()
            client.send(post("/", b"12345", "Expect: 100-continue")[:-5])
            assert (await client.answer())[0] == 100
            client.close()
            await all_gone(server)

    run(main())
    assert handled == []


@pytest.mark.needs("curl")
def test_curl_does_not_wait_to_send_its_body(run: Run) -> None:
    async def main() -> None:
        async with serving() as (_, connect):
            port = (await connect()).writer.get_extra_info("peername")[1]
            curl = await asyncio.create_subprocess_exec(
                "curl", "-sSv", "--expect100-timeout", "20", "-H", "Expect: 100-continue", "--data-binary", "hello",
                f"http://127.0.0.1:{port}/curl",
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out, verbose = await asyncio.wait_for(curl.communicate(), 15)
            assert out == b"POST /curl hello"
            assert b"100 Continue" in verbose

    asyncio.run(main())


# What is refused


SMUGGLING = {
    "length and encoding": HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "encoding and length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "xchunked": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked, identity": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "gzip, chunked": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity": HEAD + b"Transfer-Encoding: identity\r\n\r\n",
    "two encodings": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "empty encoding": HEAD + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n",
    "vertical tab": HEAD + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked in 1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    **{
        f"length {value!r}": HEAD + b"Content-Length: " + value + b"\r\n\r\nabcde"
        for value in (b"+5", b"-1", b"5,5", b"0x5", b"", b"5 5", b"\xb25", b"9" * 30)
    },
    "folded header": HEAD + b"A: b\r\n c\r\n\r\n",
    "bare line feeds": b"GET /x HTTP/1.1\nHost: a\n\n",
    "bare line feed in the head": HEAD + b"A: b\nC: d\r\n\r\n",
    "bare carriage return": HEAD + b"A: b\rC: d\r\n\r\n",
    "NUL": HEAD + b"A: b\0\r\n\r\n",
    "space before the colon": HEAD + b"A : b\r\n\r\n",
    "no header name": HEAD + b": b\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "host with a path": b"GET / HTTP/1.1\r\nHost: a/ping?\r\n\r\n",
    "host with a user": b"GET / HTTP/1.1\r\nHost: x@y\r\n\r\n",
    "another host in the target": b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "star": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "chunk size overflow": CHUNKED + b"FFFFFFFFFFFFFFFFF\r\nabc",
    "chunk size in hex notation": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "chunk size and a space": CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n",
    "chunks with bare line feeds": CHUNKED + b"3\nabc\n0\n\n",
    "chunk longer than its size": CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    "chunk extension": CHUNKED + b"3;a=" + b"b" * 1_000_000 + b"\r\nabc\r\n0\r\n\r\n",
    "chunk size with zeros": CHUNKED + b"0" * 1_000_000 + b"3\r\nabc\r\n0\r\n\r\n",
    "trailer": CHUNKED + b"3\r\nabc\r\n0\r\nHost: b\r\n\r\n",
    "endless trailer": CHUNKED + b"0\r\nA: " + b"b" * 1_000_000,
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "SSH banner": b"SSH-2.0-OpenSSH_9.6\r\n",
    "unknown method": b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("attack", SMUGGLING.values(), ids=SMUGGLING)
def test_a_malformed_request_gets_400_and_a_closed_connection(run: Run, attack: bytes) -> None:
    """S24, S29, S30, N02: neither it nor what follows on the connection is ever handled."""
    handled = []

    async def note(request: HttpRequest) -> HttpResponse:
        handled.append(request)
        return HttpResponse(200)

    async def main() -> None:
        async with serving(note) as (_, connect):
            client = await connect()
            client.send(attack + NEXT)
            status, headers, body = await client.answer()
            assert (status, headers["connection"]) == (400, "close")
            assert body
            assert await client.ended()

    run(main())
    assert handled == []


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"DESCRIBE / RTSP/1.0\r\nHost: a\r\n\r\n", 501),
        (b"SOURCE / ICE/1.0\r\nHost: a\r\n\r\n", 501),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        (b"GET /\r\n\r\n", 505),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", 415),
        (HEAD + b"Expect: a miracle\r\nContent-Length: 1\r\n\r\nx", 417),
    ],
)
def test_what_is_not_supported_is_refused_with_its_own_code(request_bytes: bytes, status: int) -> None:
    """S31, N02"""
    requests, refused = read_all([request_bytes + NEXT])
    assert requests == []
    assert refused == status


def test_requests_before_a_malformed_one_are_answered_first(run: Run) -> None:
    async def main() -> None:
        async with serving() as (_, connect):
            client = await connect()
            client.send(get("/good") + b"BAD\r\n\r\n" + NEXT)
            assert (await client.answer())[2] == b"GET /good "
            assert (await client.answer())[0] == 400
            assert await client.ended()

    run(main())


def test_a_refusal_reaches_a_client_that_is_still_sending(run: Run) -> None:
    """The rest of a body that is too large is thrown away for a moment, so that no reset overtakes the 413."""

    async def main() -> None:
        async with serving(body_bytes=1000) as (_, connect):
            client = await connect()
            client.send(post("/", b"x" * 5_000_000))
            assert (await client.answer())[0] == 413
            assert await client.ended()

    run(main())


def test_a_refused_client_that_stays_is_cut_off_after_the_linger_time(run: Run) -> None:
    async def main() -> None:
        async with serving(linger_timeout=0.05) as (server, connect):
            client = await connect()
            client.send(b"BAD\r\n\r\n")
            assert (await client.answer())[0] == 400
            await all_gone(server)

    run(main())


def line(length: int) -> bytes:
    return get("/" + "a" * (length - len("GET / HTTP/1.1")))


def headers_of(length: int) -> bytes:
    return get("/", "A: " + "b" * (length - len("Host: a\r\n") - len("A: \r\n")))


@pytest.mark.parametrize(
    ("build", "limit", "status"),
    [
        (line, 8 * 1024, 414),
        (headers_of, 16 * 1024, 431),
        (lambda count: get("/", *["A: b"] * (count - 1)), 100, 431),
        (lambda size: post("/", b"x" * size), 100_000, 413),
        (lambda size: chunked(b"x" * 50_000, b"x" * (size - 50_000)), 100_000, 413),
        (lambda count: chunked(*[b"x"] * (count - 1)), 65_536, 400),
    ],
    ids=["request line", "header bytes", "header count", "body", "chunked body", "chunks"],
)
def test_a_limit_is_what_still_fits(build: Callable[[int], bytes], limit: int, status: int) -> None:
    """S28, S29: one less and the limit itself pass, one more is refused; the last chunk counts as one."""
    limits = HttpLimits(body_bytes=100_000)
    for size in (limit - 1, limit):
        requests, refused = read_all([build(size)], limits)
        assert (len(requests), refused) == (1, None)
    requests, refused = read_all([build(limit + 1)], limits)
    assert (len(requests), refused) == (0, status)


@pytest.mark.parametrize(
    ("flood", "statuses"),
    [
        (b"GET /" + b"a" * 64_000, {414}),
        (b"G" * 64_000, {400}),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 1_000_000, {431}),
        (b"GET / HTTP/1.1\r\n" + b"b" * 1_000_000, {431}),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10_000, {431}),
        (CHUNKED + b"1\r\nx\r\n" * 1_000_000, {400}),
        (CHUNKED + b"1;a=b\r\nx\r\n" * 1_000_000, {400}),
    ],
    ids=["line", "method", "header", "header name", "headers", "chunks", "extensions"],
)
@pytest.mark.parametrize("step", [997, 1_000_000])
def test_a_flood_is_refused_before_it_costs_anything(flood: bytes, statuses: set[int], step: int) -> None:
    """S28, S29: the table's 200 ms of processor time, with room for a slow machine."""
    began = time.process_time()
    _, refused = read_all([flood[i : i + step] for i in range(0, len(flood), step)])
    assert time.process_time() - began < 1.0
    assert refused in statuses


def test_a_large_body_is_refused_from_its_length_alone(run: Run) -> None:
    async def main() -> None:
        async with serving(body_bytes=1000) as (_, connect):
            client = await connect()
            client.send(HEAD + b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n")
            assert (await client.answer())[0] == 413

    run(main())


def test_a_connection_above_the_limit_is_told_so(run: Run) -> None:
    """K12"""

    async def main() -> None:
        async with serving(connections=2) as (_, connect):
            kept = [await connect() for _ in range(2)]
            for client in kept:
                client.send(get("/"))
                await client.answer()
            third = await connect()
            status, _, body = await third.answer()
            assert (status, await third.ended()) == (503, True)
            assert b"has 2 connections" in body
            third.close()
            kept[0].send(get("/"))
            assert (await kept[0].answer())[0] == 200

    run(main())


# Time


def test_a_head_that_does_not_end_gets_408(run: Run) -> None:
    """N01: single bytes do not move the deadline."""

    async def main() -> None:
        async with serving(header_timeout=0.1) as (_, connect):
            client = await connect()
            client.send(b"GET / HTTP/1.1\r\n")
            answer = asyncio.ensure_future(client.answer())
            while not answer.done():
                client.send(b"a")
                await asyncio.sleep(0.01)
            assert (await answer)[0] == 408

    run(main())


def test_a_slow_body_gets_408_and_is_never_handled(run: Run) -> None:
    """K09"""

    async def main() -> None:
        async with serving(body_window=0.1, body_bytes_per_second=1_000_000) as (_, connect):
            client = await connect()
            client.send(HEAD + b"Content-Length: 1000\r\n\r\nx")
            assert (await client.answer())[0] == 408
            assert await client.ended()

    run(main())


def test_a_body_at_the_least_rate_may_take_many_windows(run: Run) -> None:
    """K09"""

    async def main() -> None:
        async with serving(body_window=1.0, body_bytes_per_second=1) as (_, connect):
            client = await connect()
            client.send(HEAD + b"Content-Length: 20\r\n\r\n")
            for _ in range(20):
                client.send(b"x")
                await asyncio.sleep(0.12)
            assert (await client.answer())[0] == 200

    run(main())


def test_an_idle_connection_is_closed_without_a_word(run: Run) -> None:
    async def main() -> None:
        async with serving(idle_timeout=0.1) as (_, connect):
            fresh, used = await connect(), await connect()
            used.send(get("/"))
            assert (await used.answer())[0] == 200
            assert await fresh.ended()
            assert await used.ended()

    run(main())


def test_no_timeout_runs_while_a_request_is_handled(run: Run) -> None:
    async def slow(_: HttpRequest) -> HttpResponse:
        await asyncio.sleep(0.3)
        return HttpResponse(200)

    async def main() -> None:
        async with serving(slow, idle_timeout=0.05, header_timeout=0.05, body_window=0.05) as (_, connect):
            client = await connect()
            client.send(get("/") + b"GET / HT")
            assert (await client.answer())[0] == 200
            assert (await client.answer())[0] == 408  # its own time began when the first answer was out

    run(main())


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_does_not_read_is_cut_off_and_costs_bounded_memory(run: Run, streamed: bool) -> None:
    """K08"""
    made = 0

    async def items() -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(800):
            made += 1
            yield b"x" * 65_536

    started = asyncio.Event()

    async def large(_: HttpRequest) -> HttpResponse:
        started.set()
        return HttpResponse(200, (), items() if streamed else b"x" * 52_428_800)

    async def main() -> None:
        async with serving(large, write_timeout=0.2) as (server, connect):
            client = await connect()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(get("/"))
            await client.writer.drain()
            await started.wait()
            await all_gone(server)
            assert made < 400

    run(main())


def test_a_slow_client_that_reads_gets_the_whole_answer(run: Run) -> None:
    body = bytes(range(256)) * 40_000

    async def large(_: HttpRequest) -> HttpResponse:
        return HttpResponse(200, (), body)

    async def main() -> None:
        async with serving(large) as (_, connect):
            client = await connect()
            client.send(get("/"))
            assert (await client.answer())[2] == body
            client.send(get("/"))
            assert (await client.answer())[2] == body

    run(main())


@pytest.mark.parametrize("size", [100_000, 1_048_576, 5_000_000])
def test_a_large_body_comes_back_as_it_was_sent(run: Run, size: int) -> None:
    """It is received where it stays, whatever else comes in between."""
    body = bytes(range(251)) * (size // 251)

    async def main() -> None:
        async with serving() as (_, connect):
            client, other = await connect(), await connect()
            for _ in range(2):
                client.send(post("/big", body)[:-9])
                other.send(post("/small", b"12345"))
                assert (await other.answer())[2] == b"POST /small 12345"
                client.send(body[-9:] + get("/next"))
                assert (await client.answer())[2] == b"POST /big " + body
                assert (await client.answer())[2] == b"GET /next "

    run(main())


# Answers that tell when they are there


class Later(Pending):
    """An answer that the test gives when it likes."""

    def __init__(self, request: HttpRequest) -> None:
        self.request = request
        self.cancelled = asyncio.Event()
        self._respond: Callable[[HttpResponse], None]

    def when_answered(self, respond: Callable[[HttpResponse], None]) -> None:
        self._respond = respond

    def cancel(self) -> None:
        self.cancelled.set()

    def give(self) -> None:
        self._respond(HttpResponse(200, (), self.request.path.encode()))


def test_answers_that_come_later_keep_the_order_of_their_requests(run: Run) -> None:
    async def main() -> None:
        asked: asyncio.Queue[Later] = asyncio.Queue()

        def handle(request: HttpRequest) -> Pending:
            asked.put_nowait(later := Later(request))
            return later

        async with serving(handle) as (_, connect):
            client = await connect()
            client.send(get("/1") + get("/2") + get("/3"))
            for path in (b"/1", b"/2", b"/3"):
                later = await asked.get()
                assert asked.empty()  # the next begins when this one's answer is out
                later.give()
                assert (await client.answer())[2] == path

    run(main())


@pytest.mark.parametrize("leave", [Client.close, Client.reset], ids=["FIN", "RST"])
def test_an_answer_that_would_come_later_is_cancelled_when_its_client_leaves(
    run: Run, leave: Callable[[Client], None]
) -> None:
    """K03"""

    async def main() -> None:
        asked: asyncio.Queue[Later] = asyncio.Queue()

        def handle(request: HttpRequest) -> Pending:
            asked.put_nowait(later := Later(request))
            return later

        async with serving(handle) as (server, connect):
            client = await connect()
            client.send(get("/"))
            later = await asked.get()
            leave(client)
            await later.cancelled.wait()
            await all_gone(server)
            later.give()  # too late, and nobody's any more

    run(main())


def test_answers_at_once_are_given_without_a_task(run: Run) -> None:
    async def main() -> None:
        tasks = set()

        def handle(request: HttpRequest) -> HttpResponse:
            tasks.update(asyncio.all_tasks())
            return HttpResponse(200, (), request.path.encode())

        async with serving(handle) as (_, connect):
            client = await connect()
            client.send(get("/1") * 500 + get("/2"))
            for path in [b"/1"] * 500 + [b"/2"]:
                assert (await client.answer())[2] == path
        assert tasks == asyncio.all_tasks()

    run(main())


def test_what_goes_wrong_while_an_answer_is_written_does_not_reach_its_giver(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """The giver is a worker's link, with other clients' answers in its hands."""

    def answered(request: HttpRequest, status: int, seconds: float) -> None:
        raise RuntimeError("nobody listens")

    async def main() -> None:
        asked: asyncio.Queue[Later] = asyncio.Queue()

        def handle(request: HttpRequest) -> Pending:
            asked.put_nowait(later := Later(request))
            return later

        async with serving(handle, options={"answered": answered}) as (server, connect):
            client = await connect()
            client.send(get("/"))
            (await asked.get()).give()
            await all_gone(server)

    run(main())
    assert "nobody listens" in caplog.text


def test_the_servers_headers_stand_on_every_answer_and_every_refusal(run: Run) -> None:
    async def main() -> None:
        async with serving(options={"headers": (("x-own", "yes"),)}) as (_, connect):
            for sent, status in ((get("/"), 200), (b"GET\r\n\r\n", 400), (get("/", "Content-Encoding: br"), 415)):
                client = await connect()
                client.send(sent)
                answer = await client.answer()
                assert (answer[0], answer[1]["x-own"]) == (status, "yes")

    run(main())


def test_who_listens_is_told_of_each_answer_when_it_begins(run: Run) -> None:
    told: list[tuple[str, int]] = []

    def answered(request: HttpRequest, status: int, seconds: float) -> None:
        told.append((request.target, status))
        assert 0 <= seconds < GUARD_SECONDS

    async def main() -> None:
        async with serving(options={"answered": answered}) as (_, connect):
            client = await connect()
            client.send(get("/1?a") + get("/2"))
            assert (await client.answer())[0] == (await client.answer())[0] == 200

    run(main())
    assert told == [("/1?a", 200), ("/2", 200)]


# Leaving


@pytest.mark.parametrize("leave", [Client.close, Client.reset], ids=["FIN", "RST"])
def test_a_client_that_leaves_cancels_what_runs_for_it(run: Run, leave: Callable[[Client], None]) -> None:
    """K03"""

    async def main() -> None:
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def wait(_: HttpRequest) -> HttpResponse:
            started.set()
            try:
                await asyncio.get_running_loop().create_future()
                return HttpResponse(200)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async with serving(wait) as (server, connect):
            client = await connect()
            client.send(get("/"))
            await started.wait()
            leave(client)
            await cancelled.wait()
            await all_gone(server)

    run(main())


def test_a_client_that_stops_reading_before_it_leaves_cancels_too(run: Run) -> None:
    """K03, K08: what is still unsent does not keep the stream alive."""

    async def main() -> None:
        stuck, closed = asyncio.Event(), asyncio.Event()

        async def items() -> AsyncIterator[bytes]:
            try:
                while True:
                    asyncio.get_running_loop().call_later(0.1, stuck.set)
                    yield b"x" * 1_000_000
            finally:
                closed.set()

        async with serving(streaming(items), write_timeout=GUARD_SECONDS) as (_, connect):
            client = await connect()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(get("/"))
            await stuck.wait()
            client.writer.write_eof()
            await closed.wait()

    run(main())


def test_a_half_closed_client_is_answered_where_that_is_asked_for(run: Run) -> None:
    """K11"""

    async def main() -> None:
        started, gate = asyncio.Event(), asyncio.Event()

        async def wait(request: HttpRequest) -> HttpResponse:
            started.set()
            await gate.wait()
            return await echo(request)

        async with serving(wait, answer_half_closed=True) as (_, connect):
            client = await connect()
            client.send(get("/half"))
            client.writer.write_eof()
            await started.wait()
            await asyncio.sleep(0.02)  # lets the FIN arrive; if it came later the test would pass all the same
            gate.set()
            status, headers, body = await client.answer()
            assert (status, headers["connection"], body) == (200, "close", b"GET /half ")
            assert await client.ended()

    run(main())


def test_a_handler_that_fails_gives_500_without_its_words(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_: HttpRequest) -> HttpResponse:
        raise RuntimeError("secret")

    async def main() -> None:
        async with serving(fail) as (_, connect):
            client = await connect()
            client.send(get("/"))
            status, _, body = await client.answer()
            assert status == 500
            assert b"secret" not in body
            assert await client.ended()

    run(main())
    assert "secret" in caplog.text


# Answers


def test_the_reason_phrase_is_the_standard_one_or_the_given_one(run: Run) -> None:
    async def reason(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, reason={"/none": None, "/empty": "", "/own": "Fine By Me"}[request.path])

    async def main() -> None:
        async with serving(reason) as (_, connect):
            client = await connect()
            for path, first in (("/none", b"200 OK"), ("/empty", b"200 "), ("/own", b"200 Fine By Me")):
                client.send(get(path))
                assert await client.reader.readuntil(b"\r\n") == b"HTTP/1.1 " + first + b"\r\n"
                await client.reader.readuntil(b"\r\n\r\n")

    run(main())


@pytest.mark.parametrize(
    "response",
    [
        HttpResponse(200, (("X", "a\r\nSet-Cookie: b"),)),
        HttpResponse(200, (("X", "a\nb"),)),
        HttpResponse(200, (("X", "a\0b"),)),
        HttpResponse(200, (("X", "snowman ☃"),)),
        HttpResponse(200, (("a b", "c"),)),
        HttpResponse(200, (("", "c"),)),
        HttpResponse(200, (("a:", "c"),)),
        HttpResponse(200, (("X\r\nY", "c"),)),
        HttpResponse(200, (("X", "a" * 1_000_000),)),
        HttpResponse(200, (("Transfer-Encoding", "chunked"),)),
        HttpResponse(200, (("content-length", "5"),)),
        HttpResponse(200, (("Connection", "close"),)),
        HttpResponse(99),
        HttpResponse(100),
        HttpResponse(1000),
        HttpResponse("200"),  # type: ignore[arg-type]
        HttpResponse(200, reason="OK\r\nX: y"),
    ],
    ids=lambda response: f"{response.status} {response.headers!r:.40} {response.reason!r}",
)
def test_an_answer_that_would_break_the_framing_becomes_500(run: Run, response: HttpResponse) -> None:
    """S40"""

    async def hostile(_: HttpRequest) -> HttpResponse:
        return response

    async def main() -> None:
        async with serving(hostile) as (_, connect):
            client = await connect()
            client.send(get("/"))
            status, headers, body = await client.answer()
            assert status == 500
            assert set(headers) == {"content-type", "content-length", "connection"}
            assert body
            assert await client.ended()

    run(main())


def streaming(items: Callable[[], AsyncIterator[bytes]]) -> Handle:
    async def handle(_: HttpRequest) -> HttpResponse:
        return HttpResponse(200, (("ts_stream_next", "true"),), items())

    return handle


def test_each_item_of_a_stream_is_one_chunk_as_soon_as_it_is_there(run: Run) -> None:
    async def main() -> None:
        gates = [asyncio.Event() for _ in range(3)]

        async def items() -> AsyncIterator[bytes]:
            for i, gate in enumerate(gates):
                await gate.wait()
                yield b"item %d" % i
                yield b""

        async with serving(streaming(items)) as (_, connect):
            client = await connect()
            client.send(get("/"))
            gates[0].set()
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert b"ts_stream_next: true\r\ntransfer-encoding: chunked\r\nconnection: keep-alive" in head
            chunks = client.chunks()
            for i in range(3):
                gates[i].set()
                assert await anext(chunks) == b"item %d" % i
            assert [chunk async for chunk in chunks] == []
            client.send(get("/"))
            assert (await client.answer())[2] == b"item 0item 1item 2"

    run(main())


def test_a_stream_to_an_http_1_0_client_ends_with_the_connection(run: Run) -> None:
    async def items() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async def main() -> None:
        async with serving(streaming(items)) as (_, connect):
            client = await connect()
            client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            head, _, body = (await client.reader.read()).partition(b"\r\n\r\n")
            assert b"transfer-encoding" not in head
            assert b"connection: close" in head
            assert body == b"onetwo"

    run(main())


def test_a_stream_that_fails_breaks_the_connection(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def items() -> AsyncIterator[bytes]:
        yield b"one"
        raise RuntimeError("midway")

    async def main() -> None:
        async with serving(streaming(items)) as (_, connect):
            client = await connect()
            client.send(get("/") + NEXT)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await client.answer()
            old = await connect()
            old.send(b"GET / HTTP/1.0\r\n\r\n")
            with pytest.raises(ConnectionResetError):  # a plain end would look whole
                await old.reader.read()

    run(main())
    assert "midway" in caplog.text


def test_a_stream_that_fails_before_its_first_item_is_a_500(run: Run) -> None:
    async def items() -> AsyncIterator[bytes]:
        if items is not None:
            raise RuntimeError("at once")
        yield b""

    async def main() -> None:
        async with serving(streaming(items)) as (_, connect):
            client = await connect()
            client.send(get("/"))
            assert (await client.answer())[0] == 500

    run(main())


@pytest.mark.parametrize("how", ["leaves", "asks only for the head", "gets an answer that cannot be sent"])
def test_a_stream_is_closed_when_the_client(run: Run, how: str) -> None:
    """K03"""

    async def main() -> None:
        closed = asyncio.Event()

        class Items:
            """An iterator that is no generator: closing is seen even if it was never begun."""

            def __aiter__(self) -> "Items":
                return self

            async def __anext__(self) -> bytes:
                await asyncio.sleep(0)
                return b"x"

            async def aclose(self) -> None:
                closed.set()

        async def handle(_: HttpRequest) -> HttpResponse:
            bad = (("a b", "c"),) if how == "gets an answer that cannot be sent" else ()
            return HttpResponse(200, bad, Items())

        async with serving(handle) as (_, connect):
            client = await connect()
            client.send(get("/") if how != "asks only for the head" else b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
            await client.reader.readuntil(b"\r\n")
            if how == "leaves":
                client.reset()
            await closed.wait()

    run(main())


# Stopping


def test_draining_closes_idle_connections_and_lets_busy_ones_finish(run: Run) -> None:
    async def main() -> None:
        started, gate = asyncio.Event(), asyncio.Event()

        async def wait(request: HttpRequest) -> HttpResponse:
            started.set()
            await gate.wait()
            return await echo(request)

        async with serving(wait) as (server, connect):
            idle, busy = await connect(), await connect()
            busy.send(get("/busy") + NEXT)
            await started.wait()
            drain = asyncio.create_task(server.drain(GUARD_SECONDS))
            assert await idle.ended()
            with pytest.raises(ConnectionRefusedError):
                await connect()
            assert not drain.done()
            gate.set()
            status, headers, body = await busy.answer()
            assert (status, headers["connection"], body) == (200, "close", b"GET /busy ")
            assert await busy.ended()
            busy.close()
            await drain
            assert server.connections == 0

    run(main())


def test_an_answer_begun_before_the_drain_is_the_last_on_its_connection(run: Run) -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def items() -> AsyncIterator[bytes]:
            yield b"one"
            await gate.wait()
            yield b"two"

        async with serving(streaming(items)) as (server, connect):
            client = await connect()
            client.send(get("/"))
            await client.reader.readuntil(b"one\r\n")
            drain = asyncio.create_task(server.drain(GUARD_SECONDS))
            await asyncio.sleep(0)
            gate.set()
            assert await client.reader.read() == b"3\r\ntwo\r\n0\r\n\r\n"
            client.close()
            await drain

    run(main())


def test_draining_breaks_off_what_outlasts_the_grace(run: Run) -> None:
    async def main() -> None:
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def wait(_: HttpRequest) -> HttpResponse:
            started.set()
            try:
                await asyncio.get_running_loop().create_future()
                return HttpResponse(200)
            finally:
                cancelled.set()

        async with serving(wait) as (server, connect):
            client = await connect()
            client.send(get("/"))
            await started.wait()
            await server.drain(0.05)
            assert cancelled.is_set()
            assert server.connections == 0
            assert await client.ended()

    run(main())


# The reader alone


def read_all(
    pieces: list[bytes], limits: HttpLimits | None = None, peer: str = ""
) -> tuple[list[HttpRequest], int | None]:
    reader = RequestReader(limits or HttpLimits(), peer)
    requests = []
    for piece in pieces:
        reader.feed(piece)
        while (request := reader.take()) is not None:
            requests.append(request)
    return requests, reader.refusal.status if reader.refusal else None


STREAM = (
    get("/1?a=b", "X-One: 1")
    + post("/2", b"body\r\n\r\nGET / HTTP/1.1\r\n")
    + chunked(b"abc", b"\r\n0\r\n\r\n", b"x" * 300)
    + post("/3", b"upgraded", "Upgrade: h2c", "Connection: upgrade")
    + b"GET /4 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    + post("/5", b"y" * 9_000, "Expect: 100-continue")
    + get("/6", "Connection: close")
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_where_the_bytes_are_cut_makes_no_difference(cuts: list[int]) -> None:
    at = [0, *sorted(cuts), len(STREAM)]
    requests, refused = read_all([STREAM[a:b] for a, b in pairwise(at)])
    assert refused is None
    assert requests == read_all([STREAM])[0]
    assert [request.path for request in requests] == ["/1", "/2", "/x", "/3", "/4", "/5", "/6"]


def test_single_bytes_make_the_same_requests() -> None:
    assert read_all([STREAM[i : i + 1] for i in range(len(STREAM))]) == read_all([STREAM])


# The same heads again and again, and between them what may not be remembered.
SAME = [
    post("/a", b"12345"),
    post("/a", b"\r\n\r\n1"),
    post("/a", b"12345"),
    get("/b"),
    get("/b"),
    post("/a", b"54321"),
    chunked(b"abc", b"de"),
    chunked(b"abc", b"de"),
    post("/a", b"54321"),
    post("/c", b"123", "Expect: 100-continue"),
    post("/c", b"321", "Expect: 100-continue"),
    post("/d", b"", "Upgrade: h2c", "Connection: upgrade"),
    post("/a", b"GET /"),
    post("/a", b"", "X: 1"),
    post("/a", b"", "X: 1"),
    b"\r\n" + get("/b"),
    b"\r\n" + get("/b"),
    post("/big", b"z" * 20_000),
    post("/big", b"y" * 20_000),
    get("/last", "Connection: close"),
]


@given(st.lists(st.integers(0, len(b"".join(SAME))), max_size=60))
def test_a_head_that_is_known_makes_the_same_request_as_a_new_one(cuts: list[int]) -> None:
    stream = b"".join(SAME)
    at = [0, *sorted(cuts), len(stream)]
    alone = [read_all([one])[0][0] for one in SAME]
    assert read_all([stream[a:b] for a, b in pairwise(at)]) == (alone, None)


def test_only_plain_heads_of_the_same_bytes_are_known_again() -> None:
    def first_two(*both: bytes) -> tuple[HttpRequest, HttpRequest]:
        one, two = read_all(list(both))[0]
        return one, two

    one, two = first_two(post("/a", b"12345"), post("/a", b"54321"))
    assert one.head is two.head
    for head in ("Expect: 100-continue", "Upgrade: h2c\r\nConnection: upgrade"):
        one, two = first_two(post("/a", b"1", head), post("/a", b"1", head))
        assert one.head is not two.head
    one, two = first_two(post("/a", b"1", "Authorization: Bearer a"), post("/a", b"1", "Authorization: Bearer b"))
    assert (one.header("authorization"), two.header("authorization")) == ("Bearer a", "Bearer b")


def test_nothing_is_read_after_a_request_that_is_the_last() -> None:
    last = get("/", "Connection: close")
    assert read_all([last, last]) == (read_all([last])[0], 400)
    assert read_all([get("/"), last + get("/")])[1] == 400


def test_a_promised_body_costs_memory_as_it_comes() -> None:
    """A length alone reserves nothing: promises of many connections cannot fill the memory (S08's lying length)."""
    reader = RequestReader(HttpLimits())
    reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6000000\r\n\r\n")
    assert reader.room() is None
    reader.feed(b"x" * 1000)
    room = reader.room()
    assert room is not None
    assert 1 <= len(room) <= 32_000
    received = 1000
    while (room := reader.room()) is not None:
        room[:] = b"y" * len(room)
        received += len(room)
        reader.filled(len(room))
    request = reader.take()
    assert request is not None
    assert (received, request.body) == (6_000_000, b"x" * 1000 + b"y" * 5_999_000)
    assert reader.is_between_requests


TOKENS = [
    b"GET ", b"POST ", b"/x", b" HTTP/1.1\r\n", b"Host: a\r\n", b"\r\n", b"\r", b"\n", b"\0", b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"hello", b"Upgrade: x\r\nConnection: upgrade\r\n",
    b"Expect: 100-continue\r\n", b"\xff", b";ext", b" ", b"HTTP/2.0\r\n", b"PRI * ", b"CONNECT a:1",
]  # fmt: skip


@given(st.lists(st.one_of(st.binary(max_size=50), st.lists(st.sampled_from(TOKENS)).map(b"".join))))
def test_arbitrary_bytes_are_requests_or_a_refusal_and_never_an_exception(pieces: list[bytes]) -> None:
    requests, refused = read_all(pieces)
    assert all(request.path for request in requests)
    assert refused is None or 400 <= refused <= 505
    assert read_all([b"".join(pieces)])[0] == requests


def test_noise_on_the_socket_leaves_the_server_serving(run: Run) -> None:
    """N02"""

    async def main() -> None:
        async with serving() as (server, connect):
            for noise in (b"\0" * 100, b"\r\n" * 1000, bytes(range(256)), b"GET", b"", b"\x80\x03\x01"):
                client = await connect()
                client.send(noise)
                client.reset()
            good = await connect()
            good.send(get("/good"))
            assert (await good.answer())[2] == b"GET /good "
            good.close()
            await all_gone(server)

    run(main())
