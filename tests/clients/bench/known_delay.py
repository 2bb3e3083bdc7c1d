"""Servers that answer after a known time, as many requests at once as they have slots, first come first served."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import grpc

SERVICE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
ANSWER = b"\x0a\x02ok"  # PredictionResponse(prediction=b"ok")

# What a request waits for before it is answered.
Wait = Callable[[], Coroutine[Any, Any, None]]


class Slots:
    """`delay` seconds in one of `count` slots; `stall` seconds more before the first one is begun."""

    def __init__(self, delay: float, count: int, stall: float = 0.0) -> None:
        self._delay = delay
        self._count = count
        self._stall = stall
        self._free_at: list[float] = []

    async def __call__(self) -> None:
        # Each slot's time is booked, not slept one after the other: a timer that is late once delays nobody else.
        now = asyncio.get_running_loop().time()
        if not self._free_at:
            self._free_at = [now + self._stall] * self._count
        slot = min(range(self._count), key=self._free_at.__getitem__)
        self._free_at[slot] = end = max(now, self._free_at[slot]) + self._delay
        await asyncio.sleep(end - now)


class KnownDelay:
    """Both servers on free ports, in a thread; a context manager."""

    def __init__(self, wait: Wait, keeps: bool = True) -> None:
        """`keeps` false closes each REST connection after its answer, as it says in the answer."""
        self._wait = wait
        self._keeps = keeps
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="known delay")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self.ports: dict[str, int] = {}
        self.asked = 0

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(30.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        assert self._end is not None
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30.0)

    def address(self, protocol: str) -> str:
        return f"127.0.0.1:{self.ports[protocol]}"

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        rest = await asyncio.start_server(self._on_connection, "127.0.0.1", 0)
        server = grpc.aio.server()
        method = grpc.unary_unary_rpc_method_handler(self._predictions)
        handler = grpc.method_handlers_generic_handler(SERVICE, {"Predictions": method})
        server.add_generic_rpc_handlers((handler,))
        self.ports = {
            "rest": rest.sockets[0].getsockname()[1],
            "grpc": server.add_insecure_port("127.0.0.1:0"),
        }
        await server.start()
        self._started.set()
        await self._end.wait()
        rest.close()
        await server.stop(None)

    async def _predictions(self, request: bytes, context: Any) -> bytes:
        self.asked += 1
        await self._wait()
        return ANSWER

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                self.asked += 1
                await self._wait()
                close = b"" if self._keeps else b"connection: close\r\n"
                writer.write(b"HTTP/1.1 200 OK\r\n" + close + b"content-length: 2\r\n\r\nok")
                if not self._keeps:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
