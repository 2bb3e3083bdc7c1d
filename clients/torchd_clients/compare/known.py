"""Differences that are known: where they stand in an answer, what each side says there, and why that is so.

torchserve_0.12.toml holds those that are meant; the tests of the wire read the same file.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import translate
from pathlib import Path
from typing import Any

from torchd_clients.compare.difference import Difference
from torchd_clients.compare.recorded import RecordedRequest

TORCHSERVE = Path(__file__).with_name("torchserve_0.12.toml")
_ANYTHING = re.compile(".*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Explained:
    """A known difference. Each pattern fits a whole text; `request` that of the request's id or of "METHOD path"."""

    why: str
    request: re.Pattern[str] = _ANYTHING
    place: re.Pattern[str] = _ANYTHING
    old: re.Pattern[str] = _ANYTHING
    new: re.Pattern[str] = _ANYTHING
    # The new text begins with the old one.
    extends: bool = False

    def fits(self, found: Difference, request: RecordedRequest) -> bool:
        """Whether this is the reason of a difference in the answers to a request."""
        return (
            any(self.request.fullmatch(name) for name in (request.id, f"{request.method} {request.path}"))
            and self.place.fullmatch(found.place) is not None
            and self.old.fullmatch(found.old) is not None
            and self.new.fullmatch(found.new) is not None
            and (not self.extends or found.new.startswith(found.old))
        )


def explain(found: Iterable[Difference], request: RecordedRequest, known: Iterable[Explained]) -> list[Difference]:
    """The same differences, each with the reason of the first explanation that fits."""
    reasons = list(known)
    return [replace(one, why=next((known.why for known in reasons if known.fits(one, request)), "")) for one in found]


def read_explained(text: str) -> list[Explained]:
    """Explanations from JSON: [{"why": text, "request", "place", "old", "new": regular expressions}]."""
    found = []
    for one in json.loads(text):
        request, place, old, new = (_pattern(one.get(name)) for name in ("request", "place", "old", "new"))
        found.append(Explained(one["why"], request, place, old, new))
    return found


def torchserve() -> list[Explained]:
    """What torchd answers differently from TorchServe 0.12 on purpose; each names its row in docs/migrating.md."""
    entries = tomllib.loads(TORCHSERVE.read_text(encoding="utf-8"))["difference"]
    reasons: dict[str, str] = {}
    for entry in entries:  # later entries of an id say "the same"
        reasons.setdefault(entry["id"], entry["reason"])
    return [_meant(entry, f"{entry['id']}: {reasons[entry['id']]}") for entry in entries]


def _meant(entry: Mapping[str, Any], why: str) -> Explained:
    requests = [translate(step) for step in entry["steps"]]
    requests += [entry["requests"]] if "requests" in entry else []
    return Explained(
        why,
        _pattern("|".join(f"(?:{one})" for one in requests)),
        _pattern("|".join(map(translate, entry["paths"]))),
        _pattern(entry.get("theirs")),
        _pattern(entry.get("ours")),
        entry.get("extends", False),
    )


def _pattern(text: str | None) -> re.Pattern[str]:
    return _ANYTHING if text is None else re.compile(text, re.DOTALL)
