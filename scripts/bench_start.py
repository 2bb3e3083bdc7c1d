#!/usr/bin/env python3
"""Measures a start: seconds from exec to the first answer of a handler without torch, and memory of daemon and worker.

Memory is the proportional set size (PSS) of the daemon and its children, taken right after the first answer. TorchServe
0.12 takes 3.4 s and 481 MiB for the same. The sources are compiled first, as they are in an installed package.
"""

from __future__ import annotations

import argparse
import compileall
import http.client
import importlib.util
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from demo.daemon import Daemon, DaemonFailed
from rich.console import Console
from rich.table import Table

from torchd_archiver.packing import PackRequest, pack

HANDLER = '''\
"""Answers what it was sent."""


def handle(data, context):
    """One answer per request; nothing to load."""
    return [row.get("data", row.get("body")) for row in data or ()]
'''
BODY = b"hello"
PACKAGES = ("torchd_protos", "torchd_archiver", "torchd_server", "torchd_workers")
POLL_SECONDS = 0.001
GIVE_UP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Start:
    """One start: when the first answer came, and the memory of every process then, the daemon first."""

    seconds: float
    pss_mib: float
    processes: int


def main() -> int:
    """Runs the starts, prints them, and compares the medians with the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="starts to measure (%(default)s)")
    parser.add_argument("--max-seconds", type=float, default=0.7, help="limit of the first answer (%(default)s)")
    parser.add_argument("--max-mib", type=float, default=110.0, help="limit of the memory (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    _compile()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            starts = [_measure(Path(scratch), run) for run in range(arguments.runs)]
    except DaemonFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    seconds = statistics.median(start.seconds for start in starts)
    pss_mib = statistics.median(start.pss_mib for start in starts)
    if arguments.json:
        print(json.dumps({"seconds": seconds, "pss_mib": pss_mib, "runs": [asdict(start) for start in starts]}))
    else:
        _print_table(starts, seconds, pss_mib, arguments.max_seconds, arguments.max_mib)
    return 0 if seconds <= arguments.max_seconds and pss_mib <= arguments.max_mib else 1


def _compile() -> None:
    # pip does so. A checkout may have no compiled files and make none (PYTHONDONTWRITEBYTECODE): 0.17 s at every start.
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        for folder in spec.submodule_search_locations or () if spec is not None else ():
            compileall.compile_dir(folder, quiet=1)


def _measure(scratch: Path, run: int) -> Start:
    store = _model_store(scratch)
    ports = _free_ports(5)
    names = (
        "--grpc-inference-port",
        "--grpc-management-port",
        "--inference-port",
        "--management-port",
        "--metrics-port",
    )
    options = [str(word) for pair in zip(names, ports, strict=True) for word in pair]
    command = ["--model-store", str(store), "--models", "echo=echo.mar", "--no-token-auth", *options]
    daemon = Daemon(command, run_dir=scratch / f"run-{run}", log=scratch / f"log-{run}")
    started = time.monotonic()
    with daemon:
        _wait_for_answer(daemon, ports[2], started + GIVE_UP_SECONDS)
        seconds = time.monotonic() - started
        memory = _pss_mib(daemon.pid)
        daemon.stop()
    return Start(round(seconds, 4), round(sum(memory), 1), len(memory))


def _model_store(scratch: Path) -> Path:
    store = scratch / "model_store"
    if not store.exists():
        handler = scratch / "echo_handler.py"
        handler.write_text(HANDLER)
        pack(PackRequest(model_name="echo", version="1.0", handler=str(handler), export_path=store))
    return store


def _wait_for_answer(daemon: Daemon, port: int, give_up: float) -> None:
    """Asks every millisecond until the answer is right: what a client in a hurry would see."""
    while time.monotonic() < give_up:
        with suppress(ConnectionError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=GIVE_UP_SECONDS)
            connection.request("POST", "/predictions/echo", BODY, {"Content-Type": "application/octet-stream"})
            reply = connection.getresponse()
            if reply.status == http.client.OK and reply.read() == BODY:
                return
        daemon.check()
        time.sleep(POLL_SECONDS)
    raise DaemonFailed(f"no right answer within {GIVE_UP_SECONDS:g} s")


def _pss_mib(pid: int) -> list[float]:
    process = psutil.Process(pid)
    return [_pss_kib(each.pid) / 1024 for each in (process, *process.children(recursive=True))]


def _pss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise DaemonFailed(f"the kernel tells no PSS of process {pid}")


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on now. All are held together, so that no two are the same."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def _print_table(starts: list[Start], seconds: float, pss_mib: float, max_seconds: float, max_mib: float) -> None:
    table = Table(title=f"Start to first answer, {len(starts)} runs, {len(os.sched_getaffinity(0))} cores")
    for column in ("run", "first answer", "PSS, daemon and worker"):
        table.add_column(column, justify="right")
    for number, start in enumerate(starts, 1):
        table.add_row(str(number), f"{start.seconds:.3f} s", f"{start.pss_mib:.1f} MiB")
    table.add_section()
    table.add_row("median", f"{seconds:.3f} s", f"{pss_mib:.1f} MiB")
    table.add_row("limit", f"{max_seconds:.3f} s", f"{max_mib:.1f} MiB")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
