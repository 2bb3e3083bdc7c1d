"""A queue that takes requests of like cost together, so that short inputs are not padded to the longest.

Why this batch. A batch is padded to its longest input, so it takes (overhead + longest x count) units of work; what it
is worth is what its requests would take at best: their own cost, and their share of the overhead in a full batch. The
batch with the most worth per unit of work goes, of all runs of neighbours by cost that hold the oldest request, unless
those that came first are worth as much. Older requests are worth more, which costs little throughput and shortens the
tail. What the call costs beside its input is learnt (price.py): where it is nearly all, batches are filled whatever the
padding.

Why nobody starves. Every batch takes the oldest request. So one with n before it goes with batch n + 1 at the latest,
whoever comes later. And one that has waited for `patience` seconds is passed over only by others that have: fresh
requests go with it or after it.

`scripts/bench_cost.py` shows it beside first come, first served.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

from torchd_protos.frames import Call
from torchd_server.batching.price import Price
from torchd_server.batching.queues import Fifo
from torchd_server.clock import Clock
from torchd_server.request import Request

# What the oldest request is worth more for its age. More costs throughput, nothing lets the unlucky wait longest.
AGE_WORTH = 0.5
# Batches larger than this are looked at in steps, lest choosing one take longer than running it.
LOOKED_AT = 32


@dataclass(frozen=True, slots=True)
class CostLimits:
    """`budget`: longest x count of a batch, at most; `patience`: seconds after which fresh requests stand back."""

    budget: float = math.inf
    patience: float = math.inf


class ByCost:
    """Waiting requests, taken with their neighbours by cost."""

    def __init__(self, cost_of: Callable[[Call], float], limits: CostLimits, clock: Clock) -> None:
        self._cost_of = cost_of
        self._limits = limits
        self._clock = clock
        self._arrivals = Fifo()
        self._costs: dict[int, float] = {}
        # (cost, request), the cheapest first; the number, which no two share, decides between equal costs.
        self._ranked: list[tuple[float, int, Request]] = []
        self._price = Price()
        # Padded units of what was taken and runs, by the number of its first request.
        self._taken: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._arrivals)

    def put(self, request: Request) -> None:
        """Puts it last, and where its cost belongs."""
        self._arrivals.put(request)
        self._rank(request)

    def put_back(self, requests: Iterable[Request]) -> None:
        """Puts each where it was."""
        back = list(requests)
        self._arrivals.put_back(back)
        for request in back:
            self._taken.pop(request.number, None)
            self._rank(request)

    def take(self, most: int) -> list[Request]:
        """The best batch that holds the oldest request, in the order of arrival."""
        if most < 1 or not self._ranked:
            return []
        batch = sorted(self._best(most), key=lambda request: request.number)
        self._taken[batch[0].number] = len(batch) * max(self._costs[request.number] for request in batch)
        for request in batch:
            self.discard(request)
        return batch

    def take_all(self) -> list[Request]:
        """Every one, in the order of arrival."""
        self._ranked.clear()
        self._costs.clear()
        return self._arrivals.take_all()

    def discard(self, request: Request) -> None:
        """Forgets it, wherever it stands."""
        cost = self._costs.pop(request.number, None)
        if cost is not None:
            self._arrivals.discard(request)
            del self._ranked[bisect_left(self._ranked, (cost, request.number))]

    def oldest(self) -> Request:
        """The one that came first, which the next batch will hold; the queue must not be empty."""
        return self._arrivals.oldest()

    def ran(self, requests: Sequence[Request], seconds: float | None) -> None:
        """Learns from what a batch has cost."""
        # More than one batch where a worker has died.
        units = [taken for request in requests if (taken := self._taken.pop(request.number, None)) is not None]
        if len(units) == 1 and seconds is not None:
            self._price.ran(units[0], seconds)

    def _rank(self, request: Request) -> None:
        cost = max(1.0, self._cost_of(request.call))
        self._costs[request.number] = cost
        insort(self._ranked, (cost, request.number, request))

    def _best(self, most: int) -> list[Request]:
        oldest = self.oldest()
        now = self._clock.time()
        age = max(now - oldest.received_at, 1e-9)
        pool = self._ranked
        if age >= self._limits.patience:
            since = now - self._limits.patience
            pool = [ranked for ranked in pool if ranked[2].received_at <= since]
        place = bisect_left(pool, (self._costs[oldest.number], oldest.number))
        near = pool[max(0, place - most + 1) : place + most]
        overhead = self._price.overhead(most * sum(cost for cost, _, _ in near) / len(near))
        share = overhead / most

        # Who came a moment before another is not older: against the time of a batch it is nothing.
        old = max(age, self._price.seconds)

        def worth(ranked: tuple[float, int, Request]) -> float:
            return (share + ranked[0]) * (1 + AGE_WORTH * (now - ranked[2].received_at) / old)

        sums = list(accumulate(map(worth, near), initial=0.0))
        best, batch = 0.0, near[:0]
        for start, end in _windows(min(place, most - 1), len(near), most):
            units = near[end - 1][0] * (end - start)
            if units > self._limits.budget and end - start > 1:
                continue
            rate = (sums[end] - sums[start]) / (overhead + units)
            if rate > best:
                best, batch = rate, near[start:end]
        first = self._first(most)
        rate = sum(map(worth, first)) / (overhead + len(first) * max(first)[0])
        return [request for _, _, request in (first if rate >= best else batch)]

    def _first(self, most: int) -> list[tuple[float, int, Request]]:
        """Those that came first, as many as the budget allows."""
        first: list[tuple[float, int, Request]] = []
        longest = 0.0
        for request in islice(self._arrivals, most):
            cost = self._costs[request.number]
            longest = max(longest, cost)
            if first and longest * (len(first) + 1) > self._limits.budget:
                break
            first.append((cost, request.number, request))
        return first


def _windows(place: int, length: int, most: int) -> Iterator[tuple[int, int]]:
    """Starts and ends of the runs of at most `most` neighbours that hold `place`."""
    step = max(1, most // LOOKED_AT)
    for end in (*range(place + 1, length, step), length):
        lowest = max(0, end - most)
        yield from ((start, end) for start in (*range(place, lowest, -step), lowest))
