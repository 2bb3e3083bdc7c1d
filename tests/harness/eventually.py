"""Waiting for a fact that has no event of its own to wait on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(fact: Callable[[], T], *, within: float = 20.0, what: str = "") -> T:
    """Asks until `fact` is true and returns it; AssertionError with the last answer after `within` seconds."""
    end = time.monotonic() + within
    pause = threading.Event()
    while not (found := fact()):
        assert time.monotonic() < end, f"{what or fact} did not come true in {within} s; last: {found!r}"
        pause.wait(0.01)
    return found
