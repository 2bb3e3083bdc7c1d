"""BaseEnvelope, which envelopes derive from, and what they share: JSON bodies, and one request of a batch alone."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from copy import copy
from inspect import isawaitable
from typing import Any

from torchd_workers.failures import PredictionException


class BaseEnvelope:
    """Stands before a handler's entry point. A subclass overrides parse_input and format_output."""

    def __init__(self, handle_fn: Callable[[Any, Any], Any]) -> None:
        self._handle_fn = handle_fn
        self.context: Any = None

    def handle(self, data: Any, context: Any) -> Any:
        """Answers one batch."""
        self.context = context
        if data:
            data = self.parse_input(data)
        return then(self._handle_fn(data, context), lambda found: self.format_output(found) if found else found)

    def parse_input(self, data: Any) -> Any:
        """What the handler gets for the batch."""
        raise NotImplementedError(f"{type(self).__name__} does not override parse_input")

    def format_output(self, data: Any) -> Any:
        """What the clients get for the handler's output."""
        raise NotImplementedError(f"{type(self).__name__} does not override format_output")


def then(results: Any, go_on: Callable[[Any], Any]) -> Any:
    """`go_on` with the handler's results: at once, or awaited where the handler is async."""
    return _later(results, go_on) if isawaitable(results) else go_on(results)


async def _later(results: Awaitable[Any], go_on: Callable[[Any], Any]) -> Any:
    return go_on(await results)


def body_of(row: Any) -> Any:
    """The part "data" or "body" of a request, read as JSON if it came as bytes or text."""
    body = row.get("data") or row.get("body")
    if isinstance(body, bytes | bytearray | str):
        return parsed(body)
    return body


def parsed(body: bytes | bytearray | str) -> Any:
    """The JSON in a body; raises PredictionException(400)."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise PredictionException(f"the request's body is no JSON: {error}", 400) from error


def field_of(body: Any, name: str) -> list[Any]:
    """The list in the field `name` of a JSON body; raises PredictionException(400)."""
    found = body.get(name) if isinstance(body, dict) else None
    if not isinstance(found, list):
        raise PredictionException(f"the request's JSON must be an object with a list {name!r}", 400)
    return found


def is_explain(context: Any, row: int) -> bool:
    """Whether the request at this place asks for an explanation."""
    return context is not None and context.get_request_header(row, "explain") == "True"


def alone(context: Any, row: int) -> Any:
    """The context as it would be if the request at this place were its batch; responses set on it count."""
    one = copy(context)
    one.request_ids = {0: context.get_request_id(row)}
    one.request_processor = [context.request_processor[row]]
    one.running = context.running[row : row + 1]
    return one


def split(outputs: Any, sizes: list[int]) -> list[Any]:
    """The handler's outputs by request, of which each had so many inputs."""
    total = sum(sizes)
    if not isinstance(outputs, list) or len(outputs) != total:
        found = len(outputs) if isinstance(outputs, list) else f"a {type(outputs).__name__}"
        raise ValueError(f"the handler returned {found} for the {total} inputs of {len(sizes)} requests; one each")
    at = 0
    parts = []
    for size in sizes:
        parts.append(outputs[at : at + size])
        at += size
    return parts
