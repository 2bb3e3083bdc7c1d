"""Records what the real TorchServe 0.12 answers: runs every scenario against it and writes golden/<scenario>.jsonl.

    python -m venv ts-venv && ts-venv/bin/pip install torchserve==0.12.0 torch-model-archiver==0.12.0 torch
    cd tests && python -m torchserve.record --torchserve ../ts-venv/bin [SCENARIO ...]

Needs Java 17 on the PATH. Without names it records every scenario; one that fails does not stop the others, and its
golden file stays as it was. Each server gets free ports, a folder and a temporary folder of its own, so that a
TorchServe that runs already is left alone. What differs from run to run is taken out by normalise.py.
`git diff golden` afterwards shows what a new version answers differently.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from harness.daemon import CONFIG, READY_LINE, free_ports
from torchserve import scenarios, workbench
from torchserve.answering import Server, answer
from torchserve.normalise import Words, normalised
from torchserve.scenarios import GOLDEN, Scenario

_START_SECONDS = 120.0


def main(argv: Sequence[str] | None = None) -> int:
    """Records the scenarios that are named; answers the number that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of: {', '.join(scenarios.names())}")
    parser.add_argument("--torchserve", type=Path, required=True, metavar="BIN", help="TorchServe's venv's bin folder")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the servers, with their logs")
    arguments = parser.parse_args(argv)
    programs = arguments.torchserve.absolute()
    if not (programs / "torchserve").exists():
        parser.error(f"there is no torchserve in {programs}")
    failed = 0
    names = arguments.scenarios or scenarios.names()
    with _folder(arguments.keep) as folder:
        for number, name in enumerate(names, 1):
            print(f"[{number}/{len(names)}] {name} ", end="", flush=True)
            began = time.monotonic()
            try:
                _record(scenarios.read(name), programs, Path(folder))
            except Exception as error:  # one that fails does not stop the others
                failed += 1
                print(f"\n  failed: {error}", file=sys.stderr)
            else:
                print(f" {time.monotonic() - began:.0f} s")
    return failed


def _record(scenario: Scenario, programs: Path, folder: Path) -> None:
    with serving(scenario, programs, folder / scenario.name, folder / "shelf") as server:
        _write(scenario, server)


@contextmanager
def serving(scenario: Scenario, programs: Path, home: Path, shelf: Path) -> Iterator[Server]:
    """TorchServe started as the scenario says, in a folder of its own."""
    workbench.prepare(home, scenario.setup, _packer(programs), shelf)
    environment = _environment(programs) | workbench.variables(home, scenario.setup)
    ports = free_ports(len(workbench.PORT_NAMES))
    named = dict(zip(workbench.PORT_NAMES, ports, strict=True))
    with workbench.file_server(home / "files") as files:
        server = Server(home, named, environment, files, lambda: (home / "console.log").read_text(errors="replace"))
        if not scenario.setup.server:
            yield server
            return
        lines = workbench.config(scenario.setup, ports, home)
        (home / "config.properties").write_text(CONFIG.format(*ports) + "".join(f"{line}\n" for line in lines))
        with _running(programs, scenario, server):
            yield server


def _write(scenario: Scenario, server: Server) -> None:
    recorded = []
    for step in scenario.steps:
        print(".", end="", flush=True)
        found = answer(step, server)
        recorded.append({"id": step.id, "row": step.row, **normalised(found, words(server))})
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in recorded)
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / f"{scenario.name}.jsonl").write_text(text)


def words(server: Server) -> Words:
    """What the rules must know about a server."""
    keys = server.folder / "key_file.json"
    tokens = [entry["key"] for entry in json.loads(keys.read_text()).values()] if keys.exists() else []
    return Words(str(server.folder), server.ports, server.files, tuple(tokens))


@contextmanager
def _running(programs: Path, scenario: Scenario, server: Server) -> Iterator[None]:
    console = server.folder / "console.log"
    command = [str(programs / "torchserve"), "--start", "--foreground", "--ts-config", "config.properties"]
    command += ["--model-store", "model_store", *scenario.setup.flags]
    with console.open("wb") as output:
        # A session of its own: what TorchServe starts is found by it and by nothing else.
        process = subprocess.Popen(
            command,
            cwd=server.folder,
            env=dict(server.environment),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _await_ready(process, console)
        yield
    finally:
        _stop(process)


def _await_ready(process: subprocess.Popen[bytes], console: Path) -> None:
    ends = time.monotonic() + _START_SECONDS
    while READY_LINE not in console.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > ends:
            raise RuntimeError(f"TorchServe did not start: {console.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    family = [process.pid, *(child.pid for child in _children(process.pid))]
    known = [psutil.Process(pid) for pid in family if psutil.pid_exists(pid)]
    for one in known:
        with suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(known, timeout=10)
    for one in alive:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _environment(programs: Path) -> dict[str, str]:
    """The user's environment without what belongs to the interpreter that records."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(("TS_", "PYTHON"))}
    return found | {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}", "OMP_NUM_THREADS": "1"}


def _packer(programs: Path) -> Any:
    def pack(arguments: Sequence[str]) -> None:
        command = [str(programs / "torch-model-archiver"), *arguments]
        done = subprocess.run(command, env=_environment(programs), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")

    return pack


@contextmanager
def _folder(keep: bool) -> Iterator[str]:
    if keep:
        path = tempfile.mkdtemp(prefix="golden-")
        print(f"folders stay in {path}")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="golden-") as path:
        yield path


if __name__ == "__main__":
    sys.exit(main())
