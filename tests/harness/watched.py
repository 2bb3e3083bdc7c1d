"""A model in several ranks that a daemon serves: their processes, their steps, their sockets, what they unpickled."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil

from harness.archives import MODELS
from harness.eventually import eventually
from harness.gate import Gate
from harness.leaks import Holdings, check_no_process_left, check_nothing_left
from harness.surfaces import GrpcSurface, RestSurface
from torchd_archiver.packing import PackRequest, pack

# Two ranks load torch and transformers, on a machine with other things to do.
LOADING = 150.0


@dataclass(frozen=True, slots=True)
class Watched:
    """The only worker of a model, with the handler of tests/models/watched_parallel or another."""

    client: GrpcSurface | RestSurface
    model: str
    folder: Path

    def ranks(self) -> list[dict[str, Any]]:
        """What DescribeModel says of each rank; nothing while there is no worker."""
        [version] = self.client.describe(self.model).json()
        return [rank for worker in version["workers"] for rank in worker.get("ranks", [])]

    def pids(self, other_than: Sequence[int] = ()) -> list[int]:
        """The processes, rank 0 first, once they are ready: others than those that were."""

        def found() -> list[int]:
            ranks = self.ranks()
            pids = [rank["pid"] for rank in ranks]
            ready = ranks and all(rank["state"] == "READY" for rank in ranks)
            return pids if ready and not set(pids) & set(other_than) else []

        return eventually(found, within=LOADING, what=f"the ranks of {self.model}")

    def steps(self) -> list[int]:
        """How many steps each rank has made."""
        return [int((self.folder / f"steps-{rank}").read_text()) for rank in (0, 1)]

    def steps_since(self, before: Sequence[int]) -> list[int]:
        """How many more than these."""
        return [now - then for now, then in zip(self.steps(), before, strict=True)]

    def unpickled(self) -> list[list[str]]:
        """The classes that each rank has looked up to unpickle something."""
        return [(self.folder / f"unpickled-{rank}").read_text().splitlines() for rank in (0, 1)]


def pack_watched(store: Path, name: str, watch: Path, **settings: Any) -> str:
    """Packs the watched handler; gives what `--models` takes. `settings` are model-config.yaml's.

    While it loads it waits at the gate `watch`/gate, if there is one.
    """
    watch.mkdir()
    handler = {**settings.pop("handler"), "watch": str(watch), "gate": str(watch / "gate")}
    ranks = {"minWorkers": 1, "maxWorkers": 1, "deviceType": "cpu", "torchrun": {"nproc-per-node": 2}}
    config = watch / "model-config.yaml"
    config.write_text(json.dumps({**ranks, **settings, "handler": handler}))  # JSON is YAML
    source = MODELS / "watched_parallel" / "handler.py"
    pack(PackRequest(name, "1.0", str(source), config_file=config, export_path=store))
    return f"{name}={name}.mar"


def watch_loading(watched: Sequence[Watched], gate: Gate) -> dict[int, list[str]]:
    """What DescribeModel says of each rank while it stands at the gate; lets it on until it reads a second file.

    Each rank is looked at by a client of its own. The gate then still holds them.
    """
    said: dict[int, list[str]] = defaultdict(list)
    eventually(lambda: [rank for rank in watched[0].ranks() if rank["progress"]], within=LOADING, what="progress")
    files: dict[int, set[str]] = defaultdict(set)
    while len(files[0]) < 2 or len(files[1]) < 2:
        visitor = gate.wait_visitor()
        rank, percent = map(int, visitor.request.split(":"))

        def told(rank: int = rank, percent: int = percent) -> str:
            text = str(watched[rank].ranks()[rank]["progress"])
            return text if text.startswith(f"{percent} % ") else ""

        said[rank].append(eventually(told, what=f"{percent} % of rank {rank}"))
        files[rank].add(said[rank][-1].rpartition(" ")[2])
        if len(files[rank]) < 2:
            visitor.let_through()
    return said


def listening(pids: Sequence[int]) -> list[str]:
    """The addresses that these processes listen at."""
    every = [one for pid in pids for one in psutil.Process(pid).net_connections(kind="inet")]
    return [one.laddr.ip for one in every if one.status == psutil.CONN_LISTEN]


def sockets_within_reach(pids: Sequence[int]) -> list[str]:
    """The sockets of these processes that others could find: not on the loopback, or with a name in a file system."""
    found = []
    for process in map(psutil.Process, pids):
        bound = [one for one in process.net_connections(kind="inet") if one.laddr and not _is_loopback(one.laddr.ip)]
        named = [one for one in process.net_connections(kind="unix") if one.laddr]
        found += [f"{process.pid} {one}" for one in (*bound, *named)]
    return found


def _is_loopback(text: str) -> bool:
    address = ip_address(text)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@contextmanager
def leaving_nothing(folder: Path) -> Iterator[None]:
    """Fails unless all that was done meanwhile is gone at the end; workers may come and go in between."""
    before = Holdings.now()
    yield
    check_no_process_left(folder)
    check_nothing_left(before)
