"""The functions of the workflow."""

from __future__ import annotations

from typing import Any


def begin(data: Any, context: Any) -> Any:
    """Makes the text loud."""
    if data is None:
        return None
    return [_text(row.get("body") or row.get("data")).upper() for row in data]


def left(data: Any, context: Any) -> Any:
    """One branch."""
    if data is None:
        return None
    return [{"left": _text(row.get("body"))} for row in data]


def right(data: Any, context: Any) -> Any:
    """The other branch."""
    if data is None:
        return None
    return [{"right": len(_text(row.get("body")))} for row in data]


def join(data: Any, context: Any) -> Any:
    """Both branches' answers by name."""
    if data is None:
        return None
    return [{name: _text(row[name]) for name in sorted(row)} for row in data]


def fails(data: Any, context: Any) -> Any:
    """Never works."""
    if data is None:
        return None
    raise ValueError("a node that fails")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, (bytes, bytearray)) else str(value)
