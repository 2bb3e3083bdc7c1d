"""The command `torchd tune`."""

from __future__ import annotations

import typer


def add_commands(app: typer.Typer) -> None:
    """Adds it to the command line of `torchd`."""
