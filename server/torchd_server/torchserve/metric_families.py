"""The values of TorchServe's metrics: one family a name, one series for each set of label values."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from torchd_server.torchserve.metrics_config import MetricSpec

# simpleclient's.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a histogram has seen: how many values in each bucket (not summed up), and their sum."""

    counts: tuple[int, ...] = (0,) * (len(BUCKETS) + 1)
    total: float = 0.0

    def with_value(self, value: float) -> Distribution:
        """This and one value more."""
        bucket = bisect_left(BUCKETS, value)
        counts = (*self.counts[:bucket], self.counts[bucket] + 1, *self.counts[bucket + 1 :])
        return Distribution(counts, self.total + value)


@dataclass(frozen=True, slots=True)
class FamilySnapshot:
    """One family at one moment; the values are never changed."""

    spec: MetricSpec
    series: dict[Labels, float | Distribution]


class Family:
    """One metric and its series."""

    def __init__(self, spec: MetricSpec) -> None:
        self.spec = spec
        self._series: dict[Labels, float | Distribution] = {}

    def __contains__(self, labels: Labels) -> bool:
        return labels in self._series

    def __len__(self) -> int:
        return len(self._series)

    def record(self, labels: Labels, value: float) -> None:
        """Adds to a counter, sets a gauge, observes in a histogram."""
        before = self._series.get(labels)
        match self.spec.kind:
            case "counter":
                self._series[labels] = (before if isinstance(before, float) else 0.0) + value
            case "gauge":
                self._series[labels] = value
            case _:
                seen = before if isinstance(before, Distribution) else Distribution()
                self._series[labels] = seen.with_value(value)

    def forget(self, labels: Labels) -> None:
        """Drops one series."""
        self._series.pop(labels, None)

    def snapshot(self) -> FamilySnapshot:
        """Its series now, safe to read in another thread."""
        return FamilySnapshot(self.spec, dict(self._series))
