"""How long a search may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it, and the shortest trial, in seconds; 0 chooses the latter by the default's speed."""

    budget: float
    trial: float = 0.0
