"""The Python half of scripts/bench: torchd, TorchServe and the bare ceilings at the same work, in one run, in turns."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import contest, table
from benchmarks.cases import CASES, FAMILIES
from benchmarks.contest import Outcome, Plan
from benchmarks.servers import ServerFailed
from benchmarks.torchserve import NoTorchServe, environment
from torchd_clients.bench.errors import BenchError

CONTESTANTS = ("torchserve", "bare")
PROTOCOLS = ("rest", "grpc")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes the files that were asked for; 1 where a server failed or answers differ too much."""
    arguments = _parser().parse_args(argv)
    # Ends like an exception would: the servers are stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Into a file tables come whole.
    console, aside = Console(width=None if sys.stdout.isatty() else 140), Console(stderr=True)
    outcomes: list[Outcome] = []
    machine = table.machine_facts() | {
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["scripts/bench", *(sys.argv[1:] if argv is None else argv)]),
    }
    try:
        plan = _plan(arguments, aside)
        with aside.status("starting") as status:
            for case in plan.cases:
                outcome = contest.run(case, plan, lambda text, name=case.name: status.update(f"{name}: {text}"))  # type: ignore[misc]
                outcomes.append(outcome)
                console.print(table.table(outcome))
                _write(arguments, outcomes, machine)  # what is measured stays, should the rest be cut short
    except (BenchError, ServerFailed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for said in table.differences(outcomes):
        console.print(said)
    failed = any(outcome.difference is not None and not outcome.difference.is_tolerable for outcome in outcomes)
    return 1 if failed or any(row.errors for outcome in outcomes for row in outcome.rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", type=_words(FAMILIES), default=FAMILIES, metavar="A,B", help=f"of {', '.join(FAMILIES)}")
    add("--protocols", type=_words(PROTOCOLS), default=PROTOCOLS, metavar="A,B", help="rest, grpc, or both (both)")
    add("--seconds", type=float, default=2.0, help="length of a no-op measurement; models take longer (%(default)s)")
    add("--rounds", type=int, default=3, help="rounds; the figures are medians over them (%(default)s)")
    add("--without", type=_words(CONTESTANTS), default=(), metavar="A,B", help="leave out torchserve, bare")
    add("--workspace", type=Path, default=Path("build/bench"), help="archives, environments, logs (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every figure")
    add("--markdown", type=Path, metavar="FILE", help="write the table for a page")
    return parser


def _words(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        words = tuple(word for word in text.split(",") if word)
        unknown = [word for word in words if word not in known]
        if unknown or not words:
            raise argparse.ArgumentTypeError(f"{text!r}: it may name {', '.join(known)}")
        return words

    return parse


def _plan(arguments: argparse.Namespace, aside: Console) -> Plan:
    folder = arguments.workspace.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    venv = None
    if "torchserve" not in arguments.without:
        try:
            with aside.status("looking for TorchServe; its environment is made the first time"):
                venv = environment(folder)
        except NoTorchServe as error:
            aside.print(f"without TorchServe: {error}")
    return Plan(
        cases=tuple(case for case in CASES if case.family in arguments.only),
        protocols=arguments.protocols,
        seconds=arguments.seconds,
        rounds=arguments.rounds,
        torchserve=venv,
        has_bare="bare" not in arguments.without,
        folder=folder,
    )


def _write(arguments: argparse.Namespace, outcomes: Sequence[Outcome], machine: dict[str, object]) -> None:
    if arguments.json:
        arguments.json.write_text(json.dumps(table.document(outcomes, machine), indent=2) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(table.markdown(outcomes, machine))


if __name__ == "__main__":
    sys.exit(main())
