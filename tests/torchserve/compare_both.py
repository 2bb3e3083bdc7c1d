"""Runs `torchd compare` between the real TorchServe 0.12 and our daemon, side by side, over every scenario's requests.

    cd tests && python -m torchserve.compare_both --torchserve ../ts-venv/bin [SCENARIO ...]

prints every difference that neither torchserve_0.12.toml nor docs/migrating.md explains; exit code 1 if there is one.
What is no REST request (gRPC, log files, commands) is asked on both sides in its turn, and compared as the tests do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from harness.commands import environment, install_commands
from torchserve import compare, playing, record, scenarios
from torchserve.answering import Server, answer
from torchserve.normalise import normalised
from torchserve.scenarios import Scenario, Step

_DEFAULTS = {field.name: field.default for field in fields(Step) if field.default is not MISSING}
# What `torchd compare` reads of a step.
_SENT = ("method", "path", "port", "headers", "body", "raw")
_SHOWN = 200
_PORTS = ("inference", "management", "metrics")


@dataclass(frozen=True, slots=True)
class Both:
    """The two servers of one scenario, and what runs `torchd`."""

    old: Server
    new: Server
    torchd: Path
    environment: dict[str, str]

    def compared(self, scenario: str, steps: Sequence[Step]) -> Iterator[tuple[str, str]]:
        """What differs, step by step: its name, and each place with what both say."""
        if steps[0].until is not None or not _is_replayed(steps[0]):
            with ThreadPoolExecutor(2) as pool:
                theirs, ours = pool.map(lambda server: answer(steps[0], server), (self.old, self.new))
            if not _is_replayed(steps[0]):
                yield from self._seen(f"{scenario}/{steps[0].id}", theirs, ours)
                return
        yield from self._replayed(scenario, steps)

    def _seen(self, name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[tuple[str, str]]:
        normal = [normalised(found, record.words(at)) for found, at in ((theirs, self.old), (ours, self.new))]
        yield from ((name, str(one)) for one in compare.unexplained(name, *normal))

    def _replayed(self, scenario: str, steps: Sequence[Step]) -> Iterator[tuple[str, str]]:
        requests = self.new.folder / "requests.jsonl"
        requests.write_text("".join(json.dumps(_request(scenario, step)) + "\n" for step in steps))
        patience = max(step.patience for step in steps)
        command = [self.torchd, "compare", requests, "--json", "--timeout", str(patience)]
        for side, server in (("old", self.old), ("new", self.new)):
            for port in _PORTS:
                flag = f"--{side}" if port == "inference" else f"--{side}-{port}"
                command += [flag, f"http://127.0.0.1:{server.ports[port]}"]
            for word, value in _words(server).items():
                command += [f"--{side}-word", f"{word}={value}"]
        done = subprocess.run(
            list(map(str, command)), env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode not in (0, 1):
            raise RuntimeError(f"torchd compare: exit code {done.returncode}: {done.stderr}")
        for one in json.loads(done.stdout):
            for found in one["differences"]:
                if not found["why"]:
                    yield (
                        one["id"],
                        str(compare.Difference(found["place"], *(found[side][:_SHOWN] for side in ("old", "new")))),
                    )


def _is_replayed(step: Step) -> bool:
    """Whether `torchd compare` can send it: one REST request, not over TLS."""
    return step.protocol == "rest" and step.together == 1 and not step.tls


def _request(scenario: str, step: Step) -> dict[str, Any]:
    """The step as a line of `torchd compare`."""
    given = {name: value for name, value in asdict(step).items() if name in _SENT and value != _DEFAULTS[name]}
    return {"id": f"{scenario}/{step.id}", **given}


def _words(server: Server) -> dict[str, str]:
    """What this server alone has. Longer ones first: the folder's name is the beginning of the store's."""
    keys = server.folder / "key_file.json"
    tokens = json.loads(keys.read_text()) if keys.exists() else {}
    found = {f"token:{name}": entry["key"] for name, entry in tokens.items()}
    return found | {"files": server.files, "store": str(server.folder / "model_store"), "folder": str(server.folder)}


def turns(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """The steps in runs that one `torchd compare` can send.

    A run ends before what must be waited for, at what it does not send, and behind what changes the tokens.
    """
    run: list[Step] = []
    for step in steps:
        if run and (step.until is not None or not _is_replayed(step) or not _is_replayed(run[0])):
            yield run
            run = []
        run.append(step)
        if step.path.startswith("/token"):
            yield run
            run = []
    if run:
        yield run


def play_both(scenario: Scenario, programs: Path, folder: Path) -> list[tuple[str, str]]:
    """Starts both servers as the scenario says and compares every step; what is not explained."""
    commands = install_commands(folder / f"{scenario.name}-bin")
    with (
        record.serving(scenario, programs, folder / f"{scenario.name}-old", folder / "old-shelf") as old,
        playing.serving(scenario, folder / f"{scenario.name}-new", folder / "new-shelf") as new,
    ):
        both = Both(old, new, commands / "torchd", environment(commands, folder))
        return [found for steps in turns(scenario.steps) for found in both.compared(scenario.name, steps)]


def main(argv: Sequence[str] | None = None) -> int:
    """Compares the scenarios that are named, or all; 1 where something differs that nothing explains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of: {', '.join(scenarios.names())}")
    parser.add_argument("--torchserve", type=Path, required=True, metavar="BIN", help="TorchServe's venv's bin folder")
    arguments = parser.parse_args(argv)
    programs = arguments.torchserve.absolute()
    differing: dict[str, list[str]] = {}
    steps = 0
    with tempfile.TemporaryDirectory(prefix="both-") as folder:
        for name in arguments.scenarios or scenarios.names():
            scenario = scenarios.read(name)
            steps += len(scenario.steps)
            for step, difference in play_both(scenario, programs, Path(folder)):
                if step not in differing:
                    print(step, flush=True)
                differing.setdefault(step, []).append(difference)
                print(f"  {difference}", flush=True)
    print(f"{steps} steps: {len(differing)} differ unexplained")
    return min(len(differing), 1)


if __name__ == "__main__":
    sys.exit(main())
