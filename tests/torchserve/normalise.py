"""Takes out of an answer what differs from run to run, by named rules, the same for both sides; nothing else does so.

Where a rule has taken something out, its name in angle brackets stands there, so that golden files say what varied.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
# In every string, in this order.
TEXT_RULES = {
    "uuid": re.compile(_UUID),
    "time": re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,]\d{3,9}(?:Z|[+-]\d\d:?\d\d)?"),
    "epoch": re.compile(r"(?<=timestamp:)\d{10,13}(?:\.\d+)?|(?<=,)\d{10,13}$"),
    "hex": re.compile(r"(?<=models/)[0-9a-f]{32}"),
    "stamp": re.compile(r"\b\d{17}(?=-(?:startup|snapshot|shutdown)\b)"),
    "worker": re.compile(r"(?<=\bW-)\d+|(?<=\.ts\.sock\.)\d+"),
}
# Values of these keys in JSON, wherever they stand, by what they are.
JSON_RULES = {
    "startTime": "time",
    "memoryUsage": "bytes",
    "pid": "pid",
    "created": "epoch",
    "python": "path",
}
# Header values that say only how long something is, or which request it was.
HEADER_RULES = {"content-length": "length", "x-request-id": "uuid", "retry-after": "seconds"}
# Lines of logs and of the metrics text.
LINE_RULES = {
    # The number of a log line's metric, behind its name and unit; the number at the end of a line of the metrics text.
    r"\1<value>": re.compile(r"(\.\w*:)-?\d+(?:\.\d+)?(?:E-?\d+)?(?=\|#)|(?<=\} )-?\d+(?:\.\d+)?(?:E-?\d+)?$"),
    "<client>": re.compile(r"(?<=127\.0\.0\.1:)\d{4,5}"),
    "<ms>": re.compile(r"(?<= \d{3} )\d+$|(?<= \d )\d+$"),
    "<thread>": re.compile(r"(?<=\] )\S+(?= (?:TS_METRICS|MODEL_METRICS|MODEL_LOG|ACCESS_LOG|org\.pytorch)\b)"),
    "<host>": re.compile(r'(?<=hostname:)[^,|]+|(?<=ostname=")[^"]+'),
}


@dataclass(frozen=True, slots=True)
class Words:
    """What this run alone has: the values of one server that answers may repeat."""

    folder: str = ""
    ports: Mapping[str, int] = field(default_factory=dict)
    files: str = ""
    tokens: tuple[str, ...] = ()
    host: str = field(default_factory=socket.gethostname)


def normalised(answer: Mapping[str, Any], words: Words) -> dict[str, Any]:
    """The answer without what differs from run to run."""
    found = {name: _value(value, words) for name, value in answer.items()}
    if "headers" in found:
        found["headers"] = [[name, _header(name, value, words)] for name, value in answer["headers"]]
    if answer.get("lines") is not None:
        found["lines"] = sorted({_line(line, words) for line in answer["lines"]})
    body = answer.get("body")
    if isinstance(body, dict) and _is_metrics(body.get("text")):
        found["body"] = {"metrics": _metrics(str(body["text"]), words)}
    return found


def _header(name: str, value: str, words: Words) -> str:
    rule = HEADER_RULES.get(name.lower())
    return f"<{rule}>" if rule else _text(value, words)


def _value(value: Any, words: Words) -> Any:
    match value:
        case str():
            return _text(value, words)
        case list():
            return [_value(one, words) for one in value]
        case dict():
            return {_text(name, words): _member(name, one, value, words) for name, one in value.items()}
    return value


def _member(name: str, value: Any, inside: Mapping[str, Any], words: Words) -> Any:
    if name in JSON_RULES:
        return f"<{JSON_RULES[name]}>"
    if name == "id" and "startTime" in inside:
        return "<worker>"
    return _value(value, words)


def _text(text: str, words: Words) -> str:
    if text.isdigit() and int(text) in words.ports.values():
        return next(f"<{name}>" for name, port in words.ports.items() if str(port) == text)
    for known, name in _known(words):
        text = text.replace(known, name)
    for name, rule in TEXT_RULES.items():
        text = rule.sub(f"<{name}>", text)
    return text


def _known(words: Words) -> list[tuple[str, str]]:
    found = [(words.folder, "<folder>"), (words.files, "<files>")]
    found += [(f":{port}", f":<{name}>") for name, port in words.ports.items()]
    found += [(f"={port}", f"=<{name}>") for name, port in words.ports.items()]
    found += [(token, "<token>") for token in words.tokens]
    found += [(words.host, "<host>")] if len(words.host) > 3 else []
    return [(known, name) for known, name in found if known]


def _line(line: str, words: Words) -> str:
    line = _text(line, words)
    for name, rule in LINE_RULES.items():
        line = rule.sub(name, line)
    return line


def _is_metrics(text: object) -> bool:
    return isinstance(text, str) and text.startswith("# HELP")


def _metrics(text: str, words: Words) -> list[str]:
    """The lines of a metrics text, each shape once, in the order of the alphabet: families come in no order."""
    return sorted({_line(line, words) for line in text.splitlines()})
