"""An HTTP/1.1 server of httptools and nothing more: `python -m benchmarks.bare.http_server PORT ok|echo`."""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import httptools
import uvloop


class _Answers(asyncio.Protocol):
    def __init__(self, is_echo: bool) -> None:
        self._is_echo = is_echo
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one without deriving from it.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """What httptools has read of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        answer = b"".join(self._body) if self._is_echo else b"ok"
        self._body.clear()
        if self._transport is not None:
            self._transport.writelines((b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer), answer))


async def _serve(port: int, is_echo: bool) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Answers(is_echo), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), sys.argv[2] == "echo"))
