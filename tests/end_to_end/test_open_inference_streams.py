"""ModelStreamInfer against clients that break off in the middle of a message, and against the end of the server."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from faults.arena import wait_workers
from harness.archives import pack_model
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.surfaces import RestSurface, error_of, open_channel

from torchd_protos import open_inference_pb2 as pb

PATIENCE = 30.0
# No message of any kind.
GARBAGE = b"\xff\xff\xff"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that serves the model `tensors`, with more time to drain than a test has."""
    entry = pack_model(tmp_path, "tensors", minWorkers=1, maxWorkers=1)
    with Daemon(tmp_path, store=tmp_path / "store", models=(entry,), arguments=("--drain-grace", "120")) as daemon:
        wait_workers(RestSurface(daemon), 1, "tensors")
        yield daemon


class Stream:
    """One ModelStreamInfer call; `say` sends bytes as they are, None ends the client's side."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.said: SimpleQueue[bytes | None] = SimpleQueue()
        open_stream: Any = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=None,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        self.answers = open_stream(iter(self.said.get, None), timeout=PATIENCE)


def request(do: str = "") -> bytes:
    """An inference request without tensors; `do` is the model's wish."""
    message = pb.ModelInferRequest(model_name="tensors")
    if do:
        message.parameters["do"].string_param = do
    return bytes(message.SerializeToString())


def pending(daemon: Daemon) -> int:
    return int(RestSurface(daemon).describe("tensors").json()[0]["jobQueueStatus"]["pendingRequests"])


def test_a_message_that_cannot_be_read_ends_its_stream(daemon: Daemon) -> None:
    """P01: what came before it is answered; nobody waits for the rest of a stream that has none."""
    with open_channel(daemon, "grpc_inference") as channel:
        stream = Stream(channel)
        stream.said.put(request())
        stream.said.put(GARBAGE)
        assert not next(stream.answers).error_message
        with pytest.raises(grpc.RpcError) as broken:
            next(stream.answers)
        stream.said.put(None)
        assert error_of(broken.value).reason == "BAD_REQUEST"


def test_a_client_that_leaves_after_such_a_message_takes_its_requests_back(daemon: Daemon) -> None:
    """P09."""
    with open_channel(daemon, "grpc_inference") as channel:
        stream = Stream(channel)
        for _ in range(3):
            stream.said.put(request("wait"))
        stream.said.put(GARBAGE)
        eventually(lambda: pending(daemon) == 2)
        stream.answers.cancel()
        stream.said.put(None)
        eventually(lambda: pending(daemon) == 0)


def test_an_open_stream_that_asks_nothing_does_not_hold_up_the_end(daemon: Daemon) -> None:
    """P14: as StreamPredictions2, it is told why, and the server does not wait for the rest of the grace."""
    with open_channel(daemon, "grpc_inference") as channel:
        stream = Stream(channel)
        stream.said.put(request())
        assert not next(stream.answers).error_message
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as ended:
            next(stream.answers)
        stream.said.put(None)
        assert error_of(ended.value).reason == "DRAINING"
        assert daemon.wait() == 0
        assert time.monotonic() - began < PATIENCE
