"""Whether two servers give the same scores: the answers to every input, side by side."""

from __future__ import annotations

import http.client
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# What an optimisation may change, in standard deviations of the answers it is compared with.
TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest difference of a score, and the standard deviation of the scores that it is held against."""

    largest: float
    deviation: float
    answers: int

    @property
    def is_tolerable(self) -> bool:
        """Whether it is within tolerance."""
        return self.largest <= TOLERANCE * self.deviation


def compare(address: str, other: str, path: str, bodies: Sequence[bytes]) -> Difference:
    """Asks both servers for each of the bodies; `other` is the one to be held against."""
    ours, theirs = (_scores(each, path, bodies) for each in (address, other))
    largest = max(
        abs(one - two) for row, against in zip(ours, theirs, strict=True) for one, two in zip(row, against, strict=True)
    )
    # Of each score by itself: what tells one text from another.
    deviation = min(statistics.pstdev(column) for column in zip(*theirs, strict=True))
    return Difference(largest, deviation, len(bodies))


def _scores(address: str, path: str, bodies: Sequence[bytes]) -> list[list[float]]:
    connection = http.client.HTTPConnection(address, timeout=120)
    found = []
    for body in bodies:
        connection.request("POST", path, body, {"Content-Type": "application/octet-stream"})
        found.append(json.loads(connection.getresponse().read())["logits"])
    connection.close()
    return found
