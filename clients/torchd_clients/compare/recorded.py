"""Requests as data: one JSON object a line, as `torchd compare` reads them.

    {"method": "POST", "path": "/predictions/m", "headers": [["Content-Type", "text/plain"]], "body": {"text": "hi"}}

`id` names the request in the report (its line otherwise), `port` is inference, management or metrics, `body` is one of
{"text"}, {"json"}, {"base64"}, {"file": path}, {"repeat": [text, times]} and
{"multipart": [{"name", "filename"?, "type"?, "text"}]}. `raw` is sent on a connection of its own as it stands.
`{{name}}` is what each server has a value of its own for (--old-word, --new-word): a token, a folder.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PORTS = ("inference", "management", "metrics")
BOUNDARY = "torchd-compare-boundary"
_MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


class RequestsInvalid(ValueError):
    """A line of the file is no request; the message names the line."""


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request. `raw` stands instead of everything else where it is not empty."""

    id: str
    port: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | None
    raw: bytes = b""

    def filled(self, words: Mapping[str, str]) -> RecordedRequest:
        """The request with the words' values in place of their names in double braces."""
        if not words:
            return self
        return replace(
            self,
            path=_filled(self.path, words),
            headers=tuple((name, _filled(value, words)) for name, value in self.headers),
            body=None if self.body is None else _filled_bytes(self.body, words),
            raw=_filled_bytes(self.raw, words),
        )


def _filled(text: str, words: Mapping[str, str]) -> str:
    for name, value in words.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text


def _filled_bytes(content: bytes, words: Mapping[str, str]) -> bytes:
    # latin-1 keeps every byte as it is.
    encoded = {name: value.encode().decode("latin-1") for name, value in words.items()}
    return _filled(content.decode("latin-1"), encoded).encode("latin-1")


@dataclass(frozen=True, slots=True)
class Recording:
    """The requests of one file, and how many of its lines are none that this command sends (gRPC calls, setups)."""

    requests: tuple[RecordedRequest, ...]
    left_out: int


def read(path: Path) -> Recording:
    """Every request of the file, in order; RequestsInvalid names the line that is none."""
    requests, left_out = [], 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            if found.get("protocol", "rest") != "rest" or "setup" in found:
                left_out += 1
                continue
            requests.append(_request(found, f"line {number}", path.parent))
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise RequestsInvalid(f"{path}:{number}: {error}") from error
    return Recording(tuple(requests), left_out)


def _request(found: Mapping[str, Any], name: str, folder: Path) -> RecordedRequest:
    port = found.get("port", "inference")
    if port not in PORTS:
        raise ValueError(f"port {port!r} is none of {', '.join(PORTS)}")
    body, content_type = _body(found.get("body"), folder)
    headers = [(str(header), str(value)) for header, value in found.get("headers", ())]
    if content_type and "content-type" not in {header.lower() for header, _ in headers}:
        headers.append(("Content-Type", content_type))
    return RecordedRequest(
        id=str(found.get("id", name)),
        port=port,
        method=found.get("method", "GET"),
        path=found.get("path", "/"),
        headers=tuple(headers),
        body=body,
        raw=(found.get("raw") or "").encode("latin-1"),
    )


def _body(body: Mapping[str, Any] | None, folder: Path) -> tuple[bytes | None, str]:
    """The bytes, and the content type they have unless the request names one."""
    match body:
        case None:
            return None, ""
        case {"text": str(text)}:
            return text.encode(), ""
        case {"json": value}:
            return json.dumps(value).encode(), "application/json"
        case {"base64": str(text)}:
            return base64.b64decode(text, validate=True), ""
        case {"file": str(name)}:
            return (folder / name).read_bytes(), ""
        case {"repeat": [str(text), int(times)]}:
            return text.encode() * times, ""
        case {"multipart": parts}:
            return b"".join(map(_part, parts)) + f"--{BOUNDARY}--\r\n".encode(), _MULTIPART
    raise ValueError(f"a body is text, json, base64, file, repeat or multipart; this one is {body!r:.200}")


def _part(part: Mapping[str, str]) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{part["name"]}"'
    head += f'; filename="{part["filename"]}"' if "filename" in part else ""
    head += f"\r\nContent-Type: {part['type']}" if "type" in part else ""
    return f"{head}\r\n\r\n{part['text']}\r\n".encode()
