"""Request bodies that an archive brings along, to try its model on before the first client comes."""

from __future__ import annotations

import json
import os
from typing import Any


class SamplesUnusable(ValueError):
    """What `optimize.samples` names cannot be sent; the message says why and what would do."""


def read_samples(directory: str, name: str) -> list[bytes]:
    """The bodies in a file (one, a JSON list of them, a .jsonl with one a line) or in a folder (one in each file)."""
    root = os.path.realpath(directory)
    path = os.path.realpath(os.path.join(root, name))
    if os.path.commonpath((root, path)) != root:
        raise SamplesUnusable(f"optimize.samples is {name!r}, which is outside of the archive")
    if os.path.isdir(path):
        bodies = [
            _read(entry.path) for entry in sorted(os.scandir(path), key=lambda each: each.name) if entry.is_file()
        ]
    elif os.path.isfile(path):
        bodies = _bodies(name, _read(path))
    else:
        raise SamplesUnusable(
            f"optimize.samples is {name!r}, and the archive has no such file: pack it as an extra file"
        )
    if not bodies:
        raise SamplesUnusable(f"optimize.samples is {name!r}, which holds no request body")
    return bodies


def _bodies(name: str, content: bytes) -> list[bytes]:
    if name.endswith((".jsonl", ".ndjson")):
        return [
            _checked_line(name, number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()
        ]
    try:
        value = json.loads(content)
    except ValueError:
        if name.endswith(".json"):
            raise SamplesUnusable(f"optimize.samples is {name!r}, which is no JSON") from None
        return [content]  # a picture, say
    return [json.dumps(body).encode() for body in value] if _is_list_of_bodies(value) else [content]


def _is_list_of_bodies(value: Any) -> bool:
    """A list of numbers is the body of one request; one of lists or objects is many requests."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict | list | str) for each in value)


def _checked_line(name: str, number: int, line: bytes) -> bytes:
    try:
        json.loads(line)
    except ValueError:
        raise SamplesUnusable(f"optimize.samples is {name!r}, whose line {number} is no JSON") from None
    return line


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
