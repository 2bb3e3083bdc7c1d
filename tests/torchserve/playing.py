"""Plays a scenario against our own daemon, started as a user would; `python -m torchserve.playing` shows what differs.

    cd tests && python -m torchserve.playing [SCENARIO ...]

prints every unexplained difference.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from harness.commands import environment, install_commands
from harness.daemon import Daemon
from torchserve import compare, scenarios, workbench
from torchserve.answering import Server, answer
from torchserve.normalise import normalised
from torchserve.record import words
from torchserve.scenarios import Scenario

from torchd_archiver import cli as archiver_cli


def play(scenario: Scenario, folder: Path, shelf: Path) -> dict[str, Any]:
    """Starts our daemon as the scenario says and sends every step; the answers, normalised, by step id."""
    try:
        with serving(scenario, folder, shelf) as server:
            return _answers(scenario, server)
    except NotStarted as error:
        return {step.id: {"broken": str(error)} for step in scenario.steps}


class NotStarted(Exception):
    """Our daemon did not start; the message has the end of what it said."""


@contextmanager
def serving(scenario: Scenario, folder: Path, shelf: Path) -> Iterator[Server]:
    """Our daemon started as the scenario says; NotStarted where it does not."""
    workbench.prepare(folder, scenario.setup, _pack, shelf)
    if not scenario.setup.server:
        commands = install_commands(folder / "bin")
        yield Server(folder, {}, environment(commands, folder / "tmp") | workbench.variables(folder, scenario.setup))
        return
    daemon = _daemon(scenario, folder)
    daemon.launch()
    if not daemon.wait_ready_or_gone():
        daemon.wait()
        raise NotStarted(f"the daemon did not start: {daemon.log[-400:]}")
    try:
        with workbench.file_server(folder / "files") as files:
            ports = dict(zip(workbench.PORT_NAMES, daemon.ports, strict=True))
            yield Server(folder, ports, daemon.environment, files, lambda: daemon.log)
    finally:
        daemon.stop()
        (folder / "console.log").write_text(daemon.log)


def _daemon(scenario: Scenario, folder: Path) -> Daemon:
    daemon = Daemon(
        folder,
        command="torchserve",
        store=Path("model_store"),
        arguments=[flag for flag in scenario.setup.flags if flag != "--ncs"],
        snapshots="--ncs" not in scenario.setup.flags,
        variables=workbench.variables(folder, scenario.setup),
        tokens=True,  # as the flags of the scenario say
    )
    daemon.write_config(workbench.config(scenario.setup, daemon.ports, folder))
    return daemon


def _answers(scenario: Scenario, server: Server) -> dict[str, Any]:
    return {step.id: normalised(answer(step, server), words(server)) for step in scenario.steps}


def _pack(arguments: Sequence[str]) -> None:
    with redirect_stdout(io.StringIO()):
        assert archiver_cli.main(arguments) == 0, arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Plays the scenarios that are named, or all; answers how many steps differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of: {', '.join(scenarios.names())}")
    arguments = parser.parse_args(argv)
    names = arguments.scenarios or scenarios.names()
    steps, differing = 0, 0
    with tempfile.TemporaryDirectory(prefix="playing-") as folder:
        for name in names:
            found = play(scenarios.read(name), Path(folder) / name, Path(folder) / "shelf")
            for step, recorded in scenarios.read_golden(name).items():
                left = compare.unexplained(f"{name}/{step}", recorded, found[step])
                steps += 1
                if left:
                    differing += 1
                    print(f"{name}/{step} ({recorded['row']})", *left, sep="\n  ", flush=True)
    print(f"{differing} of {steps} steps differ", file=sys.stderr)
    return min(differing, 1)


if __name__ == "__main__":
    sys.exit(main())
