"""The command `torchd compare`."""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import urlsplit

import typer

from torchd_clients.compare.difference import HEADERS, KEYS, Difference, Rules, differences
from torchd_clients.compare.known import Explained, explain, read_explained, torchserve
from torchd_clients.compare.recorded import PORTS, RecordedRequest, RequestsInvalid, read
from torchd_clients.compare.replay import Answer, Server, can_connect

_SHOWN = 120
SAME, DIFFERENT, UNUSABLE = 0, 1, 2
Url = Annotated[str, typer.Option(metavar="URL")]
Words = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="What {{NAME}} in the requests is on this server.")
]
Other = Annotated[str | None, typer.Option(metavar="URL", show_default="the same host, one port up from inference")]


class Against(StrEnum):
    """What the old server is, which says what is known of it."""

    TORCHSERVE = "torchserve"
    OTHER = "other"


def add_commands(app: typer.Typer) -> None:
    """Adds the command to the command line of `torchd`."""
    app.command()(compare)


@dataclass(frozen=True, slots=True)
class Compared:
    """One request, and what both servers made of it. `old` and `new` hold one answer per repetition."""

    request: RecordedRequest
    old: Sequence[Answer]
    new: Sequence[Answer]
    found: Sequence[Difference]


def compare(
    requests: Annotated[Path, typer.Argument(help="File with one JSON object per request.", show_default=False)],
    old: Annotated[str, typer.Option(metavar="URL", help="Inference address of the old server.", show_default=False)],
    new: Annotated[str, typer.Option(metavar="URL", help="Inference address of the new server.", show_default=False)],
    old_management: Other = None,
    new_management: Other = None,
    old_metrics: Annotated[str | None, typer.Option(metavar="URL", show_default="two ports up")] = None,
    new_metrics: Annotated[str | None, typer.Option(metavar="URL", show_default="two ports up")] = None,
    old_token: Annotated[str | None, typer.Option(help="Token for the old server.")] = None,
    new_token: Annotated[str | None, typer.Option(help="Token for the new server.")] = None,
    old_word: Words = None,
    new_word: Words = None,
    repeat: Annotated[int, typer.Option(min=1, help="Send each so often; more give better latencies.")] = 1,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 60.0,
    ignore_header: Annotated[list[str] | None, typer.Option(help="A header that is not compared.")] = None,
    ignore_key: Annotated[list[str] | None, typer.Option(help="A JSON key whose value is not compared.")] = None,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Relative difference of numbers that is none.")] = 1e-5,
    explained: Annotated[
        Path | None,
        typer.Option(help="JSON: [{why, request, place, old, new}], regular expressions of differences you know."),
    ] = None,
    against: Annotated[
        Against, typer.Option(help="The old server; of torchserve's answers the intended differences are known.")
    ] = Against.TORCHSERVE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Send the same requests to two servers and show where codes, headers, bodies and latencies differ.

    Unless told otherwise the old server is a TorchServe 0.12: what docs/migrating.md says of it counts as explained.

    Both are asked one after the other, in turns, each request on a connection of its own; what changes state (register,
    scale) changes it on both. Exit code: 0 no difference that is not explained, 1 there are some, 2 nothing to compare.
    """
    servers = (
        Server("old", _urls(old, old_management, old_metrics), old_token, timeout, _words(old_word)),
        Server("new", _urls(new, new_management, new_metrics), new_token, timeout, _words(new_word)),
    )
    for url in (old, new):
        if trouble := can_connect(url, timeout):
            _refuse(trouble)
    try:
        recording = read(requests)
        known = read_explained(explained.read_text(encoding="utf-8")) if explained is not None else []
        known += torchserve() if against is Against.TORCHSERVE else []
    except (RequestsInvalid, OSError, ValueError, KeyError) as error:
        _refuse(str(error))
    if not recording.requests:
        _refuse(f"{requests} has no request; docs/compare.md shows how one is written")
    rules = Rules(
        HEADERS | {name.lower() for name in ignore_header or ()}, KEYS | frozenset(ignore_key or ()), tolerance
    )
    compared = _compare_all(recording.requests, servers, rules, known, repeat)
    if recording.left_out:
        print(f"torchd: {recording.left_out} lines are no REST requests and were left out", file=sys.stderr)
    if as_json:
        print(json.dumps([_as_json(one) for one in compared], indent=2))
    else:
        _show(compared)
    unexplained = any(not difference.why for one in compared for difference in one.found)
    raise typer.Exit(DIFFERENT if unexplained else SAME)


def _urls(inference: str, management: str | None, metrics: str | None) -> dict[str, str]:
    """The base URL of each port; TorchServe's ports follow each other, so the others are counted from the first."""
    parts = urlsplit(inference)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        _refuse(f"{inference} is no URL of a server; write it as in http://127.0.0.1:8080")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    given = {"inference": inference, "management": management, "metrics": metrics}
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return {name: given[name] or f"{parts.scheme}://{host}:{port + up}" for up, name in enumerate(PORTS)}


def _words(given: Sequence[str] | None) -> dict[str, str]:
    found = {}
    for word in given or ():
        name, separator, value = word.partition("=")
        if not (name and separator and value):
            _refuse(f"{word!r} is no word; write it as in token=abc")
        found[name] = value
    return found


def _compare_all(
    requests: Sequence[RecordedRequest],
    servers: tuple[Server, Server],
    rules: Rules,
    known: Sequence[Explained],
    repeat: int,
) -> list[Compared]:
    from rich.console import Console
    from rich.progress import track

    compared = []
    progress = Console(stderr=True)
    for request in track(requests, "comparing", console=progress, transient=True, disable=not progress.is_terminal):
        answers: dict[str, list[Answer]] = {server.name: [] for server in servers}
        for turn in range(repeat):
            # The first of a pair finds cold caches: they take turns.
            for server in servers if turn % 2 == 0 else servers[::-1]:
                answers[server.name].append(server.answer(request))
        found = differences(answers["old"][0], answers["new"][0], rules)
        compared.append(Compared(request, answers["old"], answers["new"], explain(found, request, known)))
    return compared


def _show(compared: Sequence[Compared]) -> None:
    from rich.table import Table

    from torchd_clients.tables import console, printable

    out = console()
    table = Table("request", "place", "old", "new", title="not explained", title_justify="left")
    reasons: Counter[str] = Counter()
    for one in compared:
        name = f"{one.request.id}: {one.request.method} {one.request.path}"
        for difference in one.found:
            if difference.why:
                reasons[difference.why] += 1
                continue
            table.add_row(
                name, difference.place, *(printable(_short(side)) for side in (difference.old, difference.new))
            )
            name = ""
    if table.row_count:
        out.print(table)
    if reasons:
        known = Table("explained differences", "places")
        for why, times in sorted(reasons.items()):
            known.add_row(printable(why), str(times))
        out.print(known)
    latencies = Table("latency, ms", "old", "new", "new / old")
    old, new = ([answer.seconds * 1000 for one in compared for answer in answers(one)] for answers in (_old, _new))
    for label, value in (("median", statistics.median), ("mean", statistics.fmean), ("slowest", max)):
        latencies.add_row(label, f"{value(old):.2f}", f"{value(new):.2f}", f"{value(new) / value(old):.2f}")
    out.print(latencies)
    differing = [one for one in compared if one.found]
    unexplained = [one for one in differing if any(not difference.why for difference in one.found)]
    out.print(
        f"{len(compared)} requests: {len(compared) - len(differing)} answered alike, "
        f"{len(differing) - len(unexplained)} differ as explained, {len(unexplained)} differ unexplained"
    )


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def _old(one: Compared) -> Sequence[Answer]:
    return one.old


def _new(one: Compared) -> Sequence[Answer]:
    return one.new


def _as_json(one: Compared) -> dict[str, Any]:
    return {
        "id": one.request.id,
        "method": one.request.method,
        "path": one.request.path,
        "old": _answer_json(one.old),
        "new": _answer_json(one.new),
        "differences": [
            {"place": found.place, "old": found.old, "new": found.new, "why": found.why} for found in one.found
        ],
    }


def _answer_json(answers: Sequence[Answer]) -> dict[str, Any]:
    seconds = [round(answer.seconds, 6) for answer in answers]
    return {"status": answers[0].status, "broken": answers[0].broken, "seconds": seconds}


def _refuse(message: str) -> NoReturn:
    print(f"torchd: {message}", file=sys.stderr)
    raise typer.Exit(UNUSABLE)
