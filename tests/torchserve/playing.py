"""Plays a scenario against our own daemon, started as a user would; `python -m torchserve.playing` shows what differs.

    cd tests && python -m torchserve.playing [--write] [SCENARIO ...]

prints every unexplained difference; --write puts the steps that differ into not_yet.txt (for the scenarios named only).
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Iterator, Sequence, Set
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

NOT_YET = Path(__file__).parent / "not_yet.txt"
WAITING_SECONDS = 1.0


def not_yet() -> set[str]:
    """The steps that wait for a part that is still to be built."""
    lines = (line.partition("#")[0].strip() for line in NOT_YET.read_text().splitlines())
    return {line for line in lines if line}


def play(scenario: Scenario, folder: Path, shelf: Path, waiting: Set[str]) -> dict[str, Any]:
    """Starts our daemon as the scenario says and sends every step; the answers, normalised, by step id.

    `waiting` are the steps ("scenario/step") of what is not built: they are not waited for.
    """
    try:
        with serving(scenario, folder, shelf) as server:
            return _answers(scenario, server, waiting)
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


def _answers(scenario: Scenario, server: Server, waiting: Set[str]) -> dict[str, Any]:
    found = {}
    for step in scenario.steps:
        within = WAITING_SECONDS if f"{scenario.name}/{step.id}" in waiting else step.patience
        found[step.id] = normalised(answer(step, server, within=within), words(server))
    return found


def _pack(arguments: Sequence[str]) -> None:
    with redirect_stdout(io.StringIO()):
        assert archiver_cli.main(arguments) == 0, arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Plays the scenarios that are named, or all; answers how many steps differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of: {', '.join(scenarios.names())}")
    parser.add_argument("--write", action="store_true", help="write the steps that differ to not_yet.txt")
    arguments = parser.parse_args(argv)
    names = arguments.scenarios or scenarios.names()
    everything = {f"{name}/{step.id}" for name in names for step in scenarios.read(name).steps}
    differing = set()
    with tempfile.TemporaryDirectory(prefix="playing-") as folder:
        for name in names:
            found = play(scenarios.read(name), Path(folder) / name, Path(folder) / "shelf", everything)
            for step, recorded in scenarios.read_golden(name).items():
                left = compare.unexplained(f"{name}/{step}", recorded, found[step])
                if left:
                    differing.add(f"{name}/{step}")
                    print(f"{name}/{step} ({recorded['row']})", *left, sep="\n  ", flush=True)
    if arguments.write:
        kept = {step for step in not_yet() if step.partition("/")[0] not in names}
        NOT_YET.write_text("".join(f"{step}\n" for step in sorted(kept | differing)))
    print(f"{len(differing)} of {len(everything)} steps differ", file=sys.stderr)
    return min(len(differing), 1)


if __name__ == "__main__":
    sys.exit(main())
