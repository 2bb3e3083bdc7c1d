"""Under every end-to-end test: stubs as a user makes them, the arena with its ledger, the check that nothing leaks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from faults.arena import Arena
from faults.ledger import check
from harness.leaks import Holdings, check_no_process_left, check_nothing_left
from harness.stubs import PROTOS, generate_stubs

# The promises are 0.25 s; a shared machine of two cores may run the test's own threads that much later.
LATENESS = 5.0
UNWIND = 2.0


@pytest.fixture(scope="session", autouse=True)
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`inference_pb2_grpc` and `management_pb2_grpc`, generated now by plain grpc_tools and importable by name."""
    folder = generate_stubs(PROTOS, tmp_path_factory.mktemp("stubs"))
    sys.path.insert(0, str(folder))
    # What grpc makes once for a process must not look like a leak of the first test.
    channel = grpc.insecure_channel("127.0.0.1:9", options=[("grpc.use_local_subchannel_pool", 1)])
    ready = grpc.channel_ready_future(channel)
    with pytest.raises(grpc.FutureTimeoutError):
        ready.result(timeout=0.5)
    ready.cancel()
    channel.close()
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(autouse=True)
def nothing_leaks(tmp_path: Path) -> Iterator[None]:
    """After the test this process holds what it held before, and no process of the test is left anywhere (P15, P21)."""
    before = Holdings.now()
    yield
    check_no_process_left(tmp_path)
    check_nothing_left(before)


@pytest.fixture
def arena(tmp_path: Path, nothing_leaks: None) -> Iterator[Arena]:
    """The arena; when the test is over, its ledger is checked."""
    with Arena(tmp_path) as arena:
        yield arena
    check(arena.ledger.history(), lateness=LATENESS, unwind=UNWIND)


@pytest.fixture(params=["grpc", "rest"])
def surface(request: pytest.FixtureRequest) -> str:
    """Each test that asks for it runs once over gRPC and once over REST (P25)."""
    return str(request.param)
