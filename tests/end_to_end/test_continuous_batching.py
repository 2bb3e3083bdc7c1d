"""Continuous batching with a real handler: join, leave, stream, fail, die (torchserve.md, section 8)."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import grpc
import pytest
from faults.arena import Client, wait_running, wait_workers
from harness.archives import pack_model
from harness.daemon import Daemon
from harness.surfaces import SURFACES, GrpcSurface, StreamBroken, error_of

SIZE = 4


@contextmanager
def serving(folder: Path, surface: str = "grpc", **settings: Any) -> Iterator[tuple[Daemon, Client]]:
    """A daemon with the token model, and a client."""
    given = {"continuousBatching": True, "batchSize": SIZE, "minWorkers": 1, "maxWorkers": 1, **settings}
    entry = pack_model(folder, "tokens", **given)
    with Daemon(folder, store=folder / "store", models=(entry,)) as daemon, SURFACES[surface](daemon) as client:
        wait_workers(client, 1, "tokens")
        yield daemon, client


def wish(tokens: int, **more: Any) -> bytes:
    return json.dumps({"tokens": tokens, **more}).encode()


def said(stream: Iterator[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(stream).splitlines()]


def test_a_request_is_streamed_to_its_end_and_joined_where_nobody_streams(tmp_path: Path, surface: str) -> None:
    """Section 13 #4: TorchServe's gRPC stops after one message."""
    with serving(tmp_path, surface) as (_, client):
        assert [token["token"] for token in said(client.stream("tokens", wish(5)))] == [1, 2, 3, 4, 5]
        assert [token["token"] for token in said(iter([client.predict("tokens", wish(3)).body]))] == [1, 2, 3]
        assert len(said(client.stream("tokens", wish(5, single=True)))) == 1, "None ends without a stream"


def test_new_requests_join_while_others_run_and_never_more_than_fit(tmp_path: Path, surface: str) -> None:
    with serving(tmp_path, surface) as (_, client), ThreadPoolExecutor(16) as crowd:
        long = client.stream("tokens", wish(60, step_seconds=0.02))
        first = json.loads(next(long))
        assert first["live"] == 1
        short = [crowd.submit(lambda: said(iter([client.predict("tokens", wish(3)).body]))) for _ in range(10)]
        ended = [one.result(60) for one in short]
        rest = said(long)
        assert [[token["token"] for token in tokens] for tokens in ended] == [[1, 2, 3]] * 10
        steps = {token["step"] for token in rest}
        assert all(token["step"] in steps for tokens in ended for token in tokens), "they waited for the long one's end"
        assert max(token["live"] for token in rest) == SIZE
        assert [token["token"] for token in rest] == list(range(2, 61))


def test_a_client_that_goes_leaves_its_place_to_others(tmp_path: Path, surface: str) -> None:
    """K02, K03, H13: it drops out between two steps, and the worker stays."""
    with serving(tmp_path, surface, batchSize=1) as (daemon, client):
        endless = wish(10**6, step_seconds=0.02)
        gone = client.abandon("tokens", endless)
        with GrpcSurface(daemon) as observer:
            wait_running(observer, "tokens", 1)
        gone.leave()
        [token] = said(iter([client.predict("tokens", wish(1)).body]))
        assert token["live"] == 1
        assert token["token"] == 1


def test_a_failure_midway_ends_every_live_stream_with_its_reason_and_the_worker_goes_on(tmp_path: Path) -> None:
    """Section 0 row 10: the chunks of before, then the error."""
    with serving(tmp_path) as (_, client):
        got: list[bytes] = []
        with pytest.raises(StreamBroken) as broken:
            got.extend(client.stream("tokens", wish(5, raise_at=3)))
        assert len(got) == 2
        assert broken.value.error.reason == "HANDLER_ERROR"
        with pytest.raises(StreamBroken) as broken:
            list(client.stream("tokens", wish(5, criteria_raise=True)))
        assert "no criterion" in broken.value.error.message
        assert len(said(client.stream("tokens", wish(2)))) == 2


def test_a_bad_criterion_costs_its_own_request_alone(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, client):
        other = client.stream("tokens", wish(20, step_seconds=0.02))
        next(other)
        assert client.predict("tokens", wish(2, criteria_raise=True)).error is not None
        assert len(said(other)) == 19


def test_a_worker_killed_in_mid_generation_costs_what_had_begun_and_nobody_else(tmp_path: Path, surface: str) -> None:
    """W01: typed at once; those that had not begun run on the next worker."""
    with serving(tmp_path, surface, batchSize=2) as (_, client), ThreadPoolExecutor(8) as crowd:
        streams = [client.stream("tokens", wish(10**6, step_seconds=0.02)) for _ in range(2)]
        [pid] = {json.loads(next(stream))["pid"] for stream in streams}
        queued = [crowd.submit(client.predict, "tokens", wish(2)) for _ in range(4)]
        os.kill(pid, signal.SIGKILL)
        for stream in streams:
            with pytest.raises((StreamBroken, HTTPException, OSError)):
                list(stream)
        assert [len(said(iter([one.result(60).body]))) for one in queued] == [2] * 4


def test_a_deadline_passes_between_two_steps(tmp_path: Path) -> None:
    """K06."""
    with serving(tmp_path) as (_, client):
        assert isinstance(client, GrpcSurface)
        request = client.messages.PredictionsRequest(
            model_name="tokens", input={"data": wish(10**6, step_seconds=0.01)}
        )
        with pytest.raises(grpc.RpcError) as late:
            list(client.inference.StreamPredictions(request, timeout=0.5))
        assert error_of(late.value).code == "DEADLINE_EXCEEDED"
        [token] = said(client.stream("tokens", wish(1)))
        assert token["live"] == 1


def test_a_slow_reader_does_not_stop_the_others(tmp_path: Path) -> None:
    """K08: what nobody reads is bounded; the reader gets all of it once it reads."""
    with serving(tmp_path) as (_, client):
        slow = client.stream("tokens", wish(40, size=100_000))
        next(slow)
        assert len(said(client.stream("tokens", wish(200)))) == 200
        assert len(said(slow)) == 39
