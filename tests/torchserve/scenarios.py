"""The requests as data: scenarios/*.jsonl, one server each. The first line says how the server is started, every other
line is one step: what to send, and the row of the reference that it shows.

A REST step has method, path and, where it needs them, port (inference), headers ([name, value] pairs, sent as they
are) and body: {"text"}, {"json"}, {"base64"}, {"repeat": [text, times]} or {"multipart": [{"name", "filename"?,
"type"?, "text"}]}. `raw` instead is sent on the socket as it is; `pieces` asks for the chunks of the body one by one;
`together` sends it from so many clients and asks for all their answers. `tls` has a REST or gRPC step go over TLS.
A gRPC step has rpc ("Service/Method"), messages (protobuf's JSON) and metadata. Other protocols look at what a server
leaves behind: `file` (lines of a log, by pattern), `properties` (a snapshot), and `command` (a command line and its
exit code). `until` repeats a step until its answer holds a text `times` times (1), or `exactly` so often.
`{{name}}` is what only the running server knows: {{token:inference}}, {{port:management}}, {{store}}, {{files}}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCENARIOS = HERE / "scenarios"
GOLDEN = HERE / "golden"


@dataclass(frozen=True, slots=True)
class Setup:
    """How the server of a scenario is started."""

    archives: Sequence[str] = ()
    config: Sequence[str] = ()
    flags: Sequence[str] = ("--ncs", "--disable-token-auth", "--enable-model-api")
    environment: dict[str, str] = field(default_factory=dict)
    workflows: Sequence[str] = ()
    # A certificate and its key are made: {{folder}}/tls/server.pem and .key.
    tls: bool = False
    # Nothing is started: the steps are commands.
    server: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """One request, or one look."""

    id: str
    row: str
    protocol: str = "rest"
    port: str = "inference"
    method: str = "GET"
    path: str = "/"
    headers: Sequence[Sequence[str]] = ()
    body: dict[str, Any] | None = None
    raw: str | None = None
    pieces: bool = False
    together: int = 1
    tls: bool = False
    rpc: str = ""
    messages: Sequence[dict[str, Any]] = ()
    metadata: Sequence[Sequence[str]] = ()
    file: str = ""
    pattern: str = ""
    arguments: Sequence[str] = ()
    until: dict[str, Any] | None = None
    patience: float = 20.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """Steps that share one server."""

    name: str
    setup: Setup
    steps: tuple[Step, ...]


def names() -> list[str]:
    """Every scenario there is."""
    return sorted(path.stem for path in SCENARIOS.glob("*.jsonl"))


def read(name: str) -> Scenario:
    """One scenario; a ValueError names the line that cannot be read."""
    path = SCENARIOS / f"{name}.jsonl"
    setup, steps = Setup(), []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            if "setup" in found:
                setup = Setup(**found["setup"])
            else:
                steps.append(Step(**found))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path.name}:{number}: {error}") from error
    seen = [step.id for step in steps]
    twice = {step for step in seen if seen.count(step) > 1}
    if twice:
        raise ValueError(f"{path.name}: step ids used twice: {', '.join(sorted(twice))}")
    return Scenario(name, setup, tuple(steps))


def read_golden(name: str) -> dict[str, dict[str, Any]]:
    """TorchServe's recorded answers of a scenario by step id; empty where none are recorded."""
    path = GOLDEN / f"{name}.jsonl"
    if not path.exists():
        return {}
    answers = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return {answer["id"]: answer for answer in answers}
