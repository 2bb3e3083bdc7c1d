"""What one request asks for, out of its body: a text, or JSON with the text and options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchd_workers.handlers.rows import BadInput, payload_of

_TEXTS = ("prompt", "inputs", "text", "data")


@dataclass(frozen=True, slots=True)
class Asked:
    """The text, and the options beside it."""

    text: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def streams(self) -> bool:
        """Whether the answer should come in pieces."""
        value = self.options.get("stream", False)
        if not isinstance(value, bool):
            raise BadInput(f"stream must be true or false, not {value!r:.50}")
        return value


def asked_by(row: Any) -> Asked:
    """What a row asks; raises BadInput. JSON is an object with "prompt" or "inputs"; other bodies are the text."""
    body = payload_of(row)
    if isinstance(body, bytes | bytearray | memoryview):
        try:
            body = str(body, "utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"the request's body is no text in UTF-8: {error}") from error
    if isinstance(body, str):
        body = _opened(body)
    if isinstance(body, str):
        return Asked(body)
    if not isinstance(body, Mapping):
        raise BadInput(f"the request's body is {type(body).__name__}; it must be a text or an object with a 'prompt'")
    found = [name for name in _TEXTS if name in body]
    text = body[found[0]] if found else None
    if not isinstance(text, str):
        raise BadInput(
            f"the request's {found[0]!r} is no text" if found else "the request has neither a 'prompt' nor 'inputs'"
        )
    parameters = body.get("parameters", {})
    if not isinstance(parameters, Mapping):
        raise BadInput("the request's 'parameters' must be an object")
    beside = {name: value for name, value in body.items() if name not in (*_TEXTS, "parameters")}
    return Asked(text, {**parameters, **beside})


def _opened(body: str) -> Any:
    """A text that is a JSON object is one; any other is a text, quotes and brackets too."""
    if not body.lstrip().startswith("{"):
        return body
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body
