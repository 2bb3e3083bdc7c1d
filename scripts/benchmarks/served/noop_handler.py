"""Answers every request with `ok`."""

from __future__ import annotations

from typing import Any


def handle(data: Any, context: Any) -> list[str] | None:
    """One answer for each request; there is nothing to load."""
    return None if data is None else ["ok"] * len(data)
