"""Compares a daemon's normalised answer with the recorded one: a list of differences by path, without those that
torchserve_0.12.toml explains.

A path says where: `status`, `headers.connection`, `body.json.0.workers.0.threads`, `messages.0.msg.text`. What only one
side has is compared with `<absent>`. The order of a document's keys counts, the order of headers does not.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from torchd_clients.compare.known import TORCHSERVE

ABSENT = "<absent>"


@dataclass(frozen=True, slots=True)
class Difference:
    """One place in which two answers differ."""

    path: str
    theirs: Any
    ours: Any

    def __str__(self) -> str:
        return f"{self.path}\n    TorchServe: {self.theirs!r}\n    torchd:     {self.ours!r}"


@dataclass(frozen=True, slots=True)
class Intended:
    """A difference that is meant: where, what each side says as a regular expression of the whole value, why."""

    id: str
    row: str
    reason: str
    steps: Sequence[str]
    paths: Sequence[str]
    theirs: str = ".*"
    ours: str = ".*"
    # Our text begins with theirs.
    extends: bool = False
    # What users send that is answered so, as a regular expression of "METHOD path": `torchd compare` knows no steps.
    requests: str = ""

    def covers(self, step: str, difference: Difference) -> bool:
        """Whether this is the reason of a difference in a step ("scenario/step")."""
        return (
            any(fnmatchcase(step, pattern) for pattern in self.steps)
            and any(fnmatchcase(difference.path, pattern) for pattern in self.paths)
            and _is_like(self.theirs, difference.theirs)
            and _is_like(self.ours, difference.ours)
            and (not self.extends or str(difference.ours).startswith(str(difference.theirs)))
        )


@cache
def intended() -> tuple[Intended, ...]:
    """Every difference that is meant."""
    return tuple(Intended(**entry) for entry in tomllib.loads(TORCHSERVE.read_text())["difference"])


def unexplained(step: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[Difference]:
    """The differences between two normalised answers that no row of torchserve_0.12.toml explains."""
    found = differences(theirs, ours)
    return [one for one in found if not any(rule.covers(step, one) for rule in intended())]


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[Difference]:
    """Every difference between two normalised answers."""
    left = {name: value for name, value in theirs.items() if name not in ("id", "row")}
    return list(_walk("", _with_headers(left), _with_headers(dict(ours))))


def _with_headers(answer: dict[str, Any]) -> dict[str, Any]:
    """Header names in lower case, a repeated header's values together: that is how clients read them."""
    if "headers" not in answer:
        return answer
    found: dict[str, Any] = {}
    for name, value in answer["headers"]:
        lower = name.lower()
        found[lower] = f"{found[lower]}, {value}" if lower in found else value
    # Sorted: their order means nothing.
    return answer | {"headers": dict(sorted(found.items()))}


def _walk(path: str, theirs: Any, ours: Any) -> Iterator[Difference]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        yield from _walk_objects(path, theirs, ours)
    elif isinstance(theirs, list) and isinstance(ours, list) and _is_lines(path):
        yield from _walk_lines(path, theirs, ours)
    elif isinstance(theirs, list) and isinstance(ours, list):
        for index in range(max(len(theirs), len(ours))):
            yield from _walk(_below(path, index), _at(theirs, index), _at(ours, index))
    elif theirs != ours or type(theirs) is not type(ours):
        yield Difference(path, theirs, ours)


def _walk_objects(path: str, theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[Difference]:
    for name in [*theirs, *(name for name in ours if name not in theirs)]:
        yield from _walk(_below(path, name), theirs.get(name, ABSENT), ours.get(name, ABSENT))
    order, own = [name for name in theirs if name in ours], [name for name in ours if name in theirs]
    if order != own:
        yield Difference(f"{path}.<order>".lstrip("."), order, own)


def _walk_lines(path: str, theirs: list[str], ours: list[str]) -> Iterator[Difference]:
    """Lines are sets: one difference for each line that only one side has."""
    for line in sorted({*theirs, *ours}):
        if (line in theirs) != (line in ours):
            sides = (line, ABSENT) if line in theirs else (ABSENT, line)
            yield Difference(path, *sides)


def _is_lines(path: str) -> bool:
    return path in ("lines", "body.metrics")


def _at(values: list[Any], index: int) -> Any:
    return values[index] if index < len(values) else ABSENT


def _below(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _is_like(pattern: str, value: Any) -> bool:
    return re.fullmatch(pattern, value if isinstance(value, str) else repr(value), re.DOTALL) is not None
