"""What became of the wishes in `optimize`, for operators: each option, and how much it changed the answers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

MAX_RATIO = 0.05
MIN_EQUAL_TOP1 = 0.99
# With fewer inputs one answer that tips over would be more than the bound.
TOP1_INPUTS = 64


@dataclass(frozen=True, slots=True)
class Difference:
    """Outputs beside those of the model as it was loaded; of several tensors the one that differs most."""

    # Sample requests.
    inputs: int
    max_difference: float
    # Of the outputs of the model as it was loaded.
    standard_deviation: float
    # The difference over the deviation.
    ratio: float
    # Share of equal largest values; None where outputs have no classes.
    equal_top1: float | None = None
    top1_judged: bool = False

    @property
    def is_tolerable(self) -> bool:
        """Whether the answers may be called the same."""
        top1 = self.equal_top1 if self.top1_judged else None
        return self.ratio <= MAX_RATIO and (top1 is None or top1 >= MIN_EQUAL_TOP1)

    def __str__(self) -> str:
        said = (
            f"on {self.inputs} inputs outputs differ by up to {self.max_difference:.3g}, {self.ratio:.3g} times the "
            f"standard deviation {self.standard_deviation:.3g} of the original's (at most {MAX_RATIO})"
        )
        if self.equal_top1 is None:
            return said
        judged = f"at least {MIN_EQUAL_TOP1:.0%}" if self.top1_judged else f"judged from {TOP1_INPUTS} inputs on"
        return f"{said}, and {self.equal_top1:.1%} of the top-1 are equal ({judged})"


@dataclass(frozen=True, slots=True)
class Option:
    """One option of the entry."""

    name: str
    # As the entry has it.
    asked: str
    applied: bool
    # How, or why not.
    detail: str = ""
    # None where it cannot change the answers, or nothing was compared.
    difference: Difference | None = None


@dataclass(slots=True)
class Report:
    """Grows while the options are applied."""

    options: list[Option] = field(default_factory=list)
    # Why nothing was compared; empty if it was.
    unchecked: str = ""
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """As the daemon keeps it."""
        return json.dumps(asdict(self))


def text_of(value: Any) -> str:
    """A value of the entry as YAML writes it in a line."""
    return value if isinstance(value, str) else json.dumps(value)
