"""Whether a setting's answers are the default's: numbers within a tolerance of their spread, everything else equal."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Of the standard deviation of the default's numbers.
TOLERANCE = 0.05
# Where the default's numbers have no spread to measure by: of the number itself.
_RELATIVE = 0.01
_SHOWN = 60

_Leaf = tuple[str, str, Any]


def difference(reference: Sequence[bytes], found: Sequence[bytes], tolerance: float = TOLERANCE) -> str:
    """What differs, in words that name the worst place; "" if nothing does. Both hold one answer for each input.

    A floating-point number of JSON may be off by `tolerance` times the standard deviation of the numbers that the
    reference has at its place in all answers (lists count as one place). Whole numbers are labels, like words.
    """
    if len(reference) != len(found):
        return f"{len(found)} answers in place of {len(reference)}"
    old, new = ([_leaves(answer) for answer in answers] for answers in (reference, found))
    spreads = _Spreads(old)
    worst, worst_text = 1.0, ""
    for number, (before, after) in enumerate(zip(old, new, strict=True)):
        if [leaf[0] for leaf in before] != [leaf[0] for leaf in after]:
            return (
                f"answer {number + 1} has another form: {_short(found[number])} in place of {_short(reference[number])}"
            )
        for (path, place, was), (_, _, now) in zip(before, after, strict=True):
            if not (_is_measured(was) and _is_number(now)):
                if was != now or type(was) is not type(now):
                    return f"answer {number + 1}{_at(path)} is {_short(now)} in place of {_short(was)}"
                continue
            allowed = tolerance * spreads.of(place, was)
            if was == now or (math.isnan(was) and math.isnan(now)):
                continue
            off = abs(now - was)
            if not off <= allowed and not (excess := off / allowed if allowed else math.inf) <= worst:
                worst = excess
                worst_text = (
                    f"answer {number + 1}{_at(path)} is {now:g} in place of {was:g}, allowed is {allowed:.2g} off"
                )
    return worst_text


class _Spreads:
    """The standard deviations of the reference's numbers, by their places."""

    def __init__(self, answers: Sequence[Sequence[_Leaf]]) -> None:
        by_place: dict[str, list[float]] = {}
        for leaves in answers:
            for _, place, value in leaves:
                if _is_measured(value) and math.isfinite(value):
                    by_place.setdefault(place, []).append(float(value))
        self._places: Mapping[str, float] = {place: statistics.pstdev(values) for place, values in by_place.items()}
        everything = [value for values in by_place.values() for value in values]
        self._all = statistics.pstdev(everything) if everything else 0.0

    def of(self, place: str, value: float) -> float:
        """The spread at a place; where it has none, that of all numbers, or a share of the value."""
        return self._places.get(place) or self._all or abs(value) * _RELATIVE / TOLERANCE


def _leaves(answer: bytes) -> list[_Leaf]:
    """Each value of a JSON answer: its path, its place (the path without positions in lists), itself. Other answers are
    one value."""
    try:
        document = json.loads(answer)
    except ValueError:
        return [("", "", answer)]
    return list(_walk(document, "", ""))


def _walk(value: Any, path: str, place: str) -> Iterator[_Leaf]:
    match value:
        case dict():
            # Keys may come in any order: it means nothing.
            for key in sorted(value):
                yield from _walk(value[key], f"{path}.{key}", f"{place}.{key}")
        case list():
            for number, item in enumerate(value):
                yield from _walk(item, f"{path}.{number}", f"{place}.*")
        case _:
            yield path, place, value


def _is_measured(value: Any) -> bool:
    return isinstance(value, float)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _at(path: str) -> str:
    return f" at {path[1:]}" if path else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
