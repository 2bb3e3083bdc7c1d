"""What a model's batches cost, learnt from those that ran: so much for the call, so much per unit of padded input."""

from __future__ import annotations

# What a batch counts for when the next one has run: about the last fifty are remembered.
DECAY = 0.98
LEAST_WEIGHT = 5.0
# Sizes that hardly differ say nothing about the slope.
LEAST_SPREAD = 0.05
# A client may claim any cost; one such batch must not turn the line.
FAR_OFF = 32.0


class Price:
    """A line through (padded units, seconds) of the last batches, by least squares."""

    def __init__(self) -> None:
        self._overhead: float | None = None
        self._weight = 0.0
        self._x = self._y = self._xx = self._xy = 0.0

    def overhead(self, guess: float) -> float:
        """What the call costs beside its input, in units of input: `guess` before enough has run to tell."""
        return guess if self._overhead is None else self._overhead

    @property
    def seconds(self) -> float:
        """What a batch lately took; 0 before the first."""
        return self._y / self._weight if self._weight else 0.0

    def ran(self, units: float, seconds: float) -> None:
        """A batch of so many units, padding included, took so long."""
        if self._weight >= LEAST_WEIGHT and units * self._weight > FAR_OFF * self._x:
            return
        self._weight = self._weight * DECAY + 1
        self._x = self._x * DECAY + units
        self._y = self._y * DECAY + seconds
        self._xx = self._xx * DECAY + units * units
        self._xy = self._xy * DECAY + units * seconds
        if self._weight >= LEAST_WEIGHT:
            self._fit()

    def _fit(self) -> None:
        mean, seconds = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - mean * mean
        if variance < (LEAST_SPREAD * mean) ** 2:
            return
        slope = (self._xy / self._weight - mean * seconds) / variance
        # Where a longer input costs no more, the call is nearly everything: its share is bounded, lest it be infinite.
        slope = max(slope, seconds / mean / FAR_OFF**2)
        self._overhead = max(0.0, seconds / slope - mean) if slope else None
