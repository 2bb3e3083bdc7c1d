"""Who may call what: each endpoint declares its access, and a guard decides about each call."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol


class Access(enum.Enum):
    """What a caller must show."""

    OPEN = "open"
    INFERENCE = "inference"
    MANAGEMENT = "management"
    # The API key, by which the other two are renewed.
    ADMIN = "admin"


class Guard(Protocol):
    """Decides about one call."""

    def check(self, access: Access, authorization: Sequence[str]) -> None:
        """Raises Unauthorized unless one of the `authorization` values opens this access."""


class OpenDoor:
    """Lets everybody in: tokens are switched off."""

    def check(self, access: Access, authorization: Sequence[str]) -> None:
        """Never raises."""
