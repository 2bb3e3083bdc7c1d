"""The gRPC surface in a process of its own: only frames cross to the core, which runs here with a real worker.

What makes it possible is that a surface needs one object with `predict`, `stream` and `is_healthy`, and that calls and
answers are plain values that frames can carry. The proxy below is that object.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from fakes import in_loop

from torchd_archiver.packing import PackRequest, pack
from torchd_protos.frames import Call, Cancel, Failure, FrameReader, Message, Reply, encode
from torchd_protos.inference_pb2 import PredictionsRequest
from torchd_protos.inference_pb2_grpc import (
    InferenceAPIsServiceStub,
)
from torchd_server import errors
from torchd_server.daemon import Core
from torchd_server.link import error_of
from torchd_server.management import RegisterModel
from torchd_server.settings import ServerSettings
from torchd_server.surfaces.inference_grpc import InferenceSurface, add_to_server

HANDLER = """
def handle(data, context):
    if data is None:
        return None
    words = [bytes(row["data"]) for row in data]
    if words == [b"fail"]:
        raise ValueError("as it was told")
    return words
"""


class Wire:
    """Frames over one stream, both ways."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, sock: socket.socket) -> Wire:
        return cls(*await asyncio.open_unix_connection(sock=sock))

    def send(self, message: Message) -> None:
        self._writer.writelines(encode(message))

    async def messages(self) -> AsyncIterator[Message]:
        reader = FrameReader()
        while data := await self._reader.read(65536):
            for message in reader.feed(data):
                yield message

    def close(self) -> None:
        self._writer.close()


class InferenceElsewhere:
    """What the surface calls, when the core is at the other end of a wire."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._answers: dict[int, asyncio.Queue[Reply | Failure]] = {}
        self._last = 0

    def is_healthy(self) -> bool:
        return True

    async def predict(self, call: Call) -> Reply:
        (reply,) = [reply async for reply in self.stream(call)]
        return reply

    async def stream(self, call: Call) -> AsyncGenerator[Reply, None]:
        self._last = number = self._last + 1
        answers = self._answers[number] = asyncio.Queue()
        self._wire.send(replace(call, number=number))
        is_over = False
        try:
            while not is_over:
                answer = await answers.get()
                is_over = isinstance(answer, Failure) or not answer.more
                if isinstance(answer, Failure):
                    raise _error(answer)
                yield answer
        finally:
            del self._answers[number]
            if not is_over:
                self._wire.send(Cancel(number))

    async def listen(self) -> None:
        async for message in self._wire.messages():
            if isinstance(message, Reply | Failure) and message.request in self._answers:
                self._answers[message.request].put_nowait(message)


def _error(failure: Failure) -> errors.TorchdError:
    # The class by its name, its message as it was: constructors with fields are for the side that has them.
    cls = getattr(errors, failure.kind)
    if issubclass(cls, errors.HandlerFailed):
        return error_of(failure)
    error: errors.TorchdError = cls.__new__(cls)
    Exception.__init__(error, failure.message)
    return error


async def serve_surface(fd: int) -> None:
    """The other process: a gRPC server over the proxy; says its port on standard output, ends with the wire."""
    wire = await Wire.over(socket.socket(fileno=fd))
    proxy = InferenceElsewhere(wire)
    server = grpc.aio.server()
    add_to_server(InferenceSurface(proxy), server)  # type: ignore[arg-type]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await proxy.listen()
    await server.stop(None)


async def serve_core(wire: Wire, core: Core) -> None:
    """This process: each Call becomes a request of the core, its answers go back under its number."""
    running: dict[int, asyncio.Task[None]] = {}

    async def answer(call: Call) -> None:
        try:
            async with contextlib.aclosing(core.inference.stream(call)) as replies:
                async for reply in replies:
                    wire.send(replace(reply, request=call.number, end_of_step=False))
        except errors.TorchdError as error:
            wire.send(Failure(call.number, type(error).__name__, str(error)))
        finally:
            running.pop(call.number, None)

    async for message in wire.messages():
        if isinstance(message, Call):
            running[message.number] = asyncio.ensure_future(answer(message))
        elif isinstance(message, Cancel) and message.request in running:
            running[message.request].cancel()


@asynccontextmanager
async def surface_elsewhere(tmp_path: Path) -> AsyncIterator[tuple[InferenceAPIsServiceStub, Core]]:
    """A client of a surface in another process, and the core in this one, with one echo worker."""
    (tmp_path / "handler.py").write_text(HANDLER)
    (tmp_path / "scratch").mkdir()
    pack(PackRequest("echo", "1.0", str(tmp_path / "handler.py"), export_path=tmp_path))
    paths = {"PYTHONPATH": ":".join(path for path in sys.path if path), "PATH": "/usr/bin:/bin"}
    core = Core(ServerSettings(model_store=tmp_path, environment=paths), tmp_path / "scratch")
    await core.management.register(RegisterModel("echo.mar", initial_workers=1))
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, str(theirs.fileno()),
            pass_fds=(theirs.fileno(),), env=paths, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
    wire = await Wire.over(ours)
    serving = asyncio.ensure_future(serve_core(wire, core))
    assert process.stdout is not None
    port = int(await process.stdout.readline())
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield InferenceAPIsServiceStub(channel), core
    finally:
        wire.close()
        await process.wait()
        await serving
        await core.management.drain(0.0)
        await core.management.stop()


def wants(word: bytes, model: str = "echo") -> PredictionsRequest:
    return PredictionsRequest(model_name=model, input={"data": word})


@in_loop
async def _predict_stream_and_fail(tmp_path: Path) -> None:
    async with surface_elsewhere(tmp_path) as (stub, core):
        assert (await stub.Predictions(wants(b"hello"))).prediction == b"hello"
        chunks = [message.prediction async for message in stub.StreamPredictions(wants(b"streamed"))]
        assert b"".join(chunks) == b"streamed"
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await stub.Predictions(wants(b"x", "nobody"))
        assert missing.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError, match="as it was told") as failed:
            await stub.Predictions(wants(b"fail"))
        assert failed.value.code() is grpc.StatusCode.UNKNOWN
        many = await asyncio.gather(*(stub.Predictions(wants(b"%d" % number)) for number in range(20)))
        assert [answer.prediction for answer in many] == [b"%d" % number for number in range(20)]
        assert core.registry.get("echo").unfinished == 0


def test_a_surface_serves_from_another_process(tmp_path: Path) -> None:
    """Architecture, decision 11: predict, stream and typed errors, with nothing but frames between."""
    _predict_stream_and_fail(tmp_path)


if __name__ == "__main__":
    asyncio.run(serve_surface(int(sys.argv[1])))
