"""What can keep a load from being measured."""

from __future__ import annotations


class BenchError(Exception):
    """The load could not be asked, or the daemon not be started; the text is for a person."""


class NoServer(BenchError):
    """Nothing takes connections at the target's address."""
