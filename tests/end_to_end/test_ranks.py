"""Models split over several processes, without torch: who is called, and what the end of one process costs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults.arena import Client, wait_workers
from harness.archives import pack_model
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.surfaces import SURFACES

DIED = {"grpc": "UNAVAILABLE", "rest": 500}


def ranks_of(daemon: Daemon) -> dict[int, psutil.Process]:
    """The processes of the only worker, by their rank."""
    found = {}
    for child in daemon.children():
        words = child.cmdline()
        if "--rank" in words:
            found[int(words[words.index("--rank") + 1])] = child
    return found


@contextmanager
def serving(folder: Path, surface: str, workers: int = 1, **settings: Any) -> Iterator[tuple[Daemon, Client]]:
    """A daemon with workers of two ranks each, and a client of it."""
    given = {"parallelType": "tp", "parallelLevel": 2, "minWorkers": workers, "maxWorkers": 4, **settings}
    entry = pack_model(folder, "ranks", **given)
    with (
        Daemon(folder, store=folder / "store", models=(entry,)) as daemon,
        SURFACES[surface](daemon) as client,
    ):
        wait_workers(client, workers, "ranks")
        yield daemon, client


def test_every_rank_is_called_with_the_same_rows_and_the_leader_answers(tmp_path: Path, surface: str) -> None:
    settings = {"batchSize": 3, "maxBatchDelay": 20_000, "batchWait": "full"}
    with serving(tmp_path, surface, **settings) as (daemon, client), ThreadPoolExecutor(3) as crowd:
        answers = list(crowd.map(lambda row: client.predict("ranks", row).json(), (b"a", b"b", b"c")))
        assert [answer["row"] for answer in answers] == ["a", "b", "c"]
        ranks = ranks_of(daemon)
        assert {(answer["pid"], answer["rank"], answer["size"]) for answer in answers} == {(ranks[0].pid, 0, 2)}
        for rank in (0, 1):
            eventually(lambda rank=rank: f"rank {rank}: rank {rank} was called with ['a', 'b', 'c']" in daemon.log)
        environments = [answers[0]["environment"], ranks[1].environ()]
        assert [environment["RANK"] for environment in environments] == ["0", "1"]
        for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME"):
            assert environments[0][name] == environments[1][name]
        assert wait_workers(client, 1, "ranks") == {ranks[0].pid}


def test_pipeline_parallel_asks_the_leader_alone(tmp_path: Path) -> None:
    with serving(tmp_path, "grpc", parallelType="pp") as (daemon, client):
        assert client.predict("ranks", b"a").json()["rank"] == 0
        assert len(ranks_of(daemon)) == 2
        eventually(lambda: "rank 0 was called with ['a']" in daemon.log)
        assert "rank 1 was called" not in daemon.log


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_takes_its_worker_with_it_and_another_pair_comes_up(
    tmp_path: Path, surface: str, victim: int
) -> None:
    """W01: whoever waits is told, whichever of the two it was."""
    with serving(tmp_path, surface) as (daemon, client), ThreadPoolExecutor(1) as crowd:
        before = ranks_of(daemon)
        held = crowd.submit(client.predict, "ranks", b"hold")
        eventually(lambda: "rank 1 was called with ['hold']" in daemon.log)
        os.kill(before[victim].pid, signal.SIGKILL)
        error = held.result(10).error
        assert error is not None
        assert error.code == DIED[surface]
        eventually(lambda: f"rank {victim}: the worker process was killed by SIGKILL" in daemon.log)
        after = client.predict("ranks", b"a").json()
        assert after["pid"] not in {process.pid for process in before.values()}
        assert psutil.wait_procs(before.values(), timeout=10)[1] == []
        assert len(ranks_of(daemon)) == 2


def test_a_load_that_fails_on_rank_1_is_told_with_its_words_and_its_traceback(tmp_path: Path, surface: str) -> None:
    entry = pack_model(tmp_path, "ranks", parallelType="tp", parallelLevel=2, fails_on=1)
    with Daemon(tmp_path, store=tmp_path / "store") as daemon, SURFACES[surface](daemon) as client:
        error = client.register(entry.partition("=")[2], initial_workers=1).error
        assert error is not None
        assert "rank 1: RuntimeError: shard 2 of 2 is not there" in error.message
        assert "load_a_shard_that_is_not_there" in daemon.log
        eventually(lambda: not daemon.children())


def test_scaling_starts_and_ends_whole_groups(tmp_path: Path, surface: str) -> None:
    """And they leave by themselves."""
    with serving(tmp_path, surface, workers=2) as (daemon, client):
        assert len(daemon.children()) == 4
        client.scale("ranks", 1)
        assert len(daemon.children()) == 2
        assert client.predict("ranks", b"a").json()["rank"] == 0
        client.scale("ranks", 2)
        assert len(daemon.children()) == 4
        client.unregister("ranks")
        assert daemon.children() == []
        assert "worker failed" not in daemon.log


def test_a_killed_daemon_leaves_no_rank(tmp_path: Path) -> None:
    """P15."""
    with serving(tmp_path, "grpc", workers=2) as (daemon, _):
        ranks = daemon.children()
        daemon.kill()
        assert len(ranks) == 4
        assert psutil.wait_procs(ranks, timeout=10)[1] == []


def test_a_stopping_daemon_finishes_what_a_group_runs(tmp_path: Path, surface: str) -> None:
    with serving(tmp_path, surface) as (daemon, client):
        client.predict("ranks", b"a").json()
        ranks = daemon.children()
        assert daemon.stop() == 0
        assert psutil.wait_procs(ranks, timeout=1)[1] == []
        assert "worker failed" not in daemon.log
