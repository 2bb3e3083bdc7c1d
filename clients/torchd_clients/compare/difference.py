"""Where two answers differ, leaving out what is never the same twice: ids, times, process numbers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torchd_clients.compare.replay import Answer

# Never the same twice, or decided by the connection and not by the answer.
HEADERS = frozenset({"date", "x-request-id", "content-length", "transfer-encoding", "keep-alive"})
KEYS = frozenset({"pid", "startTime", "memoryUsage", "gpuUsage", "id", "created"})
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_SHOWN = 120


@dataclass(frozen=True, slots=True)
class Rules:
    """What is not compared, by header name and by JSON key, and how close two numbers must be (relative)."""

    headers: frozenset[str] = HEADERS
    keys: frozenset[str] = KEYS
    tolerance: float = 1e-5


@dataclass(frozen=True, slots=True)
class Explained:
    """A difference that is known: in answers to requests whose id matches, in places that match; both in full."""

    request: re.Pattern[str]
    place: re.Pattern[str]
    why: str


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where the answers differ: "status", "header x", "body $.a[0]". `why` is empty where nobody explains."""

    place: str
    old: str
    new: str
    why: str = field(default="", compare=False)


def differences(old: Answer, new: Answer, rules: Rules) -> list[Difference]:
    """Every difference between two answers to the same request."""
    if old.broken or new.broken:
        return [] if bool(old.broken) == bool(new.broken) else [Difference("answer", _whole(old), _whole(new))]
    found = []
    if old.status != new.status:
        found.append(Difference("status", str(old.status), str(new.status)))
    if old.reason != new.reason:
        found.append(Difference("reason", repr(old.reason), repr(new.reason)))
    found += _headers(old.headers, new.headers, rules)
    found += _bodies(old.body, new.body, rules)
    return found


def explain(found: Iterable[Difference], request: str, explained: Iterable[Explained]) -> list[Difference]:
    """The same differences, each with the reason of the first explanation that fits."""
    known = list(explained)
    return [Difference(one.place, one.old, one.new, _why(one.place, request, known)) for one in found]


def read_explained(text: str) -> list[Explained]:
    """Explanations from JSON: [{"request": regex, "place": regex, "why": text}]; both default to anything."""
    return [
        Explained(re.compile(one.get("request", ".*")), re.compile(one.get("place", ".*")), one["why"])
        for one in json.loads(text)
    ]


def _why(place: str, request: str, explained: Iterable[Explained]) -> str:
    fits = (one.why for one in explained if one.request.fullmatch(request) and one.place.fullmatch(place))
    return next(fits, "")


def _whole(answer: Answer) -> str:
    return answer.broken or f"{answer.status} {answer.reason}"


def _headers(old: Mapping[str, str], new: Mapping[str, str], rules: Rules) -> Iterator[Difference]:
    for name in sorted((old.keys() | new.keys()) - rules.headers):
        if old.get(name) != new.get(name):
            yield Difference(f"header {name}", _header(old.get(name)), _header(new.get(name)))


def _header(value: str | None) -> str:
    return "absent" if value is None else _short(value)


def _bodies(old: bytes, new: bytes, rules: Rules) -> Iterator[Difference]:
    if old == new:
        return
    old_json, new_json = _json(old), _json(new)
    if old_json is not _NO_JSON and new_json is not _NO_JSON:
        yield from _values("body $", old_json, new_json, rules)
    elif _UUID.sub("", _text(old)) != _UUID.sub("", _text(new)):
        yield Difference("body", _short(_text(old)), _short(_text(new)))


_NO_JSON = object()


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return _NO_JSON


def _text(body: bytes) -> str:
    return body.decode("utf-8", "backslashreplace")


def _values(place: str, old: Any, new: Any, rules: Rules) -> Iterator[Difference]:
    match old, new:
        case dict(), dict():
            for key in [*old, *(key for key in new if key not in old)]:
                if key in old and key in new:
                    if key not in rules.keys:
                        yield from _values(f"{place}.{key}", old[key], new[key], rules)
                else:
                    yield Difference(f"{place}.{key}", _value(old, key), _value(new, key))
        case list(), list():
            if len(old) != len(new):
                yield Difference(place, f"{len(old)} elements", f"{len(new)} elements")
            for index, pair in enumerate(zip(old, new, strict=False)):
                yield from _values(f"{place}[{index}]", *pair, rules)
        case str(), str():
            if _UUID.sub("", old) != _UUID.sub("", new):
                yield Difference(place, _short(repr(old)), _short(repr(new)))
        case _:
            if not _same(old, new, rules.tolerance):
                yield Difference(place, _short(json.dumps(old)), _short(json.dumps(new)))


def _same(old: Any, new: Any, tolerance: float) -> bool:
    if isinstance(old, float) or isinstance(new, float):
        both = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (old, new))
        return both and math.isclose(old, new, rel_tol=tolerance)
    return type(old) is type(new) and bool(old == new)


def _value(values: Mapping[str, Any], key: str) -> str:
    return _short(json.dumps(values[key])) if key in values else "absent"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"
