"""What `torchd check` finds before the switch from TorchServe."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """How much it matters; a note alone is no reason to wait."""

    REFUSED = "refused"
    DIFFERS = "differs"
    INSECURE = "insecure"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing: where it is, what it is and what to do."""

    kind: Kind
    where: str
    what: str


def is_clean(findings: list[Finding]) -> bool:
    """Whether nothing will behave differently."""
    return all(found.kind is Kind.NOTE for found in findings)
