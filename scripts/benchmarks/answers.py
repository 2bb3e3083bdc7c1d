"""Whether two servers give the same scores: the answers to every input, side by side."""

from __future__ import annotations

import http.client
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# What an optimisation may change, in standard deviations of all the scores it is compared with; and the share of texts
# whose largest score must stay where it is. `optimize:` refuses a model by the same.
TOLERANCE = 0.05
EQUAL_TOP1 = 0.99


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest difference of a score, the standard deviation of all scores that it is held against, and in what
    share of the answers the same score is the largest."""

    largest: float
    deviation: float
    equal_top1: float
    answers: int

    @property
    def is_tolerable(self) -> bool:
        """Whether it is within tolerance."""
        return self.largest <= TOLERANCE * self.deviation and self.equal_top1 >= EQUAL_TOP1


def compare(address: str, other: str, path: str, bodies: Sequence[bytes]) -> Difference:
    """Asks both servers for each of the bodies; `other` is the one to be held against."""
    ours, theirs = (_scores(each, path, bodies) for each in (address, other))
    largest = max(
        abs(one - two) for row, against in zip(ours, theirs, strict=True) for one, two in zip(row, against, strict=True)
    )
    deviation = statistics.stdev(score for row in theirs for score in row)
    equal = sum(_top(row) == _top(against) for row, against in zip(ours, theirs, strict=True))
    return Difference(largest, deviation, equal / len(bodies), len(bodies))


def _top(row: Sequence[float]) -> int:
    return max(range(len(row)), key=row.__getitem__)


def _scores(address: str, path: str, bodies: Sequence[bytes]) -> list[list[float]]:
    connection = http.client.HTTPConnection(address, timeout=120)
    found = []
    for body in bodies:
        connection.request("POST", path, body, {"Content-Type": "application/octet-stream"})
        found.append(json.loads(connection.getresponse().read())["logits"])
    connection.close()
    return found
