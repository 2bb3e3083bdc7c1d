"""Where two answers differ, leaving out what is never the same twice: ids, times, process numbers, worker numbers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

from torchd_clients.compare.replay import Answer

# Never the same twice, or decided by the connection and not by the answer.
HEADERS = frozenset({"date", "x-request-id", "content-length", "transfer-encoding", "keep-alive"})
KEYS = frozenset({"pid", "startTime", "memoryUsage", "gpuUsage", "created"})
ABSENT = "<absent>"
_NEVER_THE_SAME = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?"
    r"|(?<=\bW-)\d+"  # workers are called by the port or the number they were given
    r"|(?<=models/)[0-9a-f]{32}"  # where TorchServe unpacks an archive
)
# The value and the time at the end of a line of the metrics text.
_METRIC_VALUE = re.compile(r"(?<=[\w}]) [-+]?(?:\d[\d.eE+-]*|Inf|NaN)(?: \d+)?$")


@dataclass(frozen=True, slots=True)
class Rules:
    """What is not compared, by header name and by JSON key, and how close two numbers must be (relative)."""

    headers: frozenset[str] = HEADERS
    keys: frozenset[str] = KEYS
    tolerance: float = 1e-5


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where the answers differ: "status", "headers.x", "body.json.a.0". `why` is empty where nobody explains.

    `old` and `new` are texts as they are and other values as JSON.
    """

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
        found.append(Difference("reason", old.reason, new.reason))
    found += _headers(old.headers, new.headers, rules)
    found += _bodies(old.body, new.body, rules)
    return found


def _whole(answer: Answer) -> str:
    return answer.broken or f"{answer.status} {answer.reason}"


def _headers(old: Mapping[str, str], new: Mapping[str, str], rules: Rules) -> Iterator[Difference]:
    for name in sorted((old.keys() | new.keys()) - rules.headers):
        theirs, ours = old.get(name, ABSENT), new.get(name, ABSENT)
        if name == "content-type" and _media_type(theirs) == _media_type(ours):
            continue
        if not _same_text(theirs, ours):
            yield Difference(f"headers.{name}", theirs, ours)


def _media_type(value: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """Type and parameters: their order, their spaces and the case of a charset mean nothing."""
    message = Message()
    message["content-type"] = value
    (kind, _), *parameters = message.get_params(failobj=[(value, "")])
    return kind.lower(), frozenset((name.lower(), _parameter(name, value)) for name, value in parameters)


def _parameter(name: str, value: str) -> str:
    return value.lower() if name.lower() == "charset" else value


def _bodies(old: bytes, new: bytes, rules: Rules) -> Iterator[Difference]:
    if old == new:
        return
    old_json, new_json = _json(old), _json(new)
    if old_json is not _NO_JSON and new_json is not _NO_JSON:
        yield from _values("body.json", old_json, new_json, rules)
    elif _is_metrics(old) and _is_metrics(new):
        yield from _metrics(_text(old), _text(new))
    elif not _same_text(_text(old), _text(new)):
        yield Difference("body.text", _text(old), _text(new))


_NO_JSON = object()


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return _NO_JSON


def _text(body: bytes) -> str:
    return body.decode("utf-8", "backslashreplace")


def _is_metrics(body: bytes) -> bool:
    return body.startswith((b"# HELP ", b"# TYPE "))


def _metrics(old: str, new: str) -> Iterator[Difference]:
    """Names and labels only, in any order: values are never the same twice."""
    theirs, ours = (
        {_NEVER_THE_SAME.sub("", _METRIC_VALUE.sub("", line)) for line in text.splitlines()} for text in (old, new)
    )
    for line in sorted(theirs ^ ours):
        yield Difference("body.metrics", *((line, ABSENT) if line in theirs else (ABSENT, line)))


def _values(place: str, old: Any, new: Any, rules: Rules) -> Iterator[Difference]:
    match old, new:
        case dict(), dict():
            for key in [*old, *(key for key in new if key not in old)]:
                if key in old and key in new:
                    if key not in rules.keys and not _is_worker_id(key, old):
                        yield from _values(f"{place}.{key}", old[key], new[key], rules)
                else:
                    yield Difference(f"{place}.{key}", _member(old, key), _member(new, key))
        case list(), list():
            for index, pair in enumerate(zip(old, new, strict=False)):
                yield from _values(f"{place}.{index}", *pair, rules)
            if len(old) != len(new):
                # The first that one side lacks stands for those behind it.
                index = min(len(old), len(new))
                yield Difference(f"{place}.{index}", _element(old, index), _element(new, index))
        case str(), str():
            if not _same_text(old, new):
                yield Difference(place, old, new)
        case _:
            if not _same(old, new, rules.tolerance):
                yield Difference(place, json.dumps(old), json.dumps(new))


def _is_worker_id(key: str, inside: Mapping[str, Any]) -> bool:
    # Other ids are the client's own, and come back as they were sent.
    return key == "id" and "startTime" in inside


def _same_text(old: str, new: str) -> bool:
    return old == new or _NEVER_THE_SAME.sub("", old) == _NEVER_THE_SAME.sub("", new)


def _same(old: Any, new: Any, tolerance: float) -> bool:
    if isinstance(old, float) or isinstance(new, float):
        both = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (old, new))
        return both and math.isclose(old, new, rel_tol=tolerance)
    return type(old) is type(new) and bool(old == new)


def _member(values: Mapping[str, Any], key: str) -> str:
    return _said(values[key]) if key in values else ABSENT


def _element(values: list[Any], index: int) -> str:
    return _said(values[index]) if index < len(values) else ABSENT


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
