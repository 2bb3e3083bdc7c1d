"""What was measured of one load."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Measurement:
    """Every answer of one load. `latencies_ms`: of good answers, sorted; `errors` counts the others by reason."""

    seconds: float
    latencies_ms: array[float]
    errors: Mapping[str, int] = field(default_factory=dict)
    # CPU time of the processes that asked: near `seconds` for each of them, the client was the bottleneck.
    client_cpu_seconds: float = 0.0
    client_processes: int = 1

    @property
    def answered(self) -> int:
        """Good answers."""
        return len(self.latencies_ms)

    @property
    def failed(self) -> int:
        """Requests without a good answer."""
        return sum(self.errors.values())

    @property
    def throughput(self) -> float:
        """Good answers a second."""
        return self.answered / self.seconds if self.seconds else 0.0

    @property
    def mean_ms(self) -> float:
        """Mean latency of good answers; 0 where there is none."""
        return sum(self.latencies_ms) / self.answered if self.answered else 0.0

    def percentile_ms(self, percent: float) -> float:
        """The latency that `percent` of the good answers do not exceed (nearest rank); 0 where there is none."""
        if not self.answered:
            return 0.0
        rank = -(-self.answered * percent // 100)
        return self.latencies_ms[max(0, min(self.answered, int(rank)) - 1)]


@dataclass(frozen=True, slots=True)
class Usage:
    """What the server's process tree used during one load. Memory is PSS in MiB at its end."""

    cpu_seconds: float = 0.0
    memory_mib: float = 0.0
    processes: int = 0


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """What the daemon's metrics say of the same time. Times in milliseconds; histograms map upper bound to count."""

    queue_ms: float = 0.0
    worker_ms: float = 0.0
    mean_batch: float = 0.0
    batch_sizes: Mapping[float, int] = field(default_factory=dict)
    queue_times_ms: Mapping[float, int] = field(default_factory=dict)
    # Percentile to time, interpolated in the daemon's histograms; `worker` is of batches, from sent to answered.
    queue_percentiles_ms: Mapping[float, float] = field(default_factory=dict)
    worker_percentiles_ms: Mapping[float, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Point:
    """One setting, and what it gave. `repeats` are all its measurements, `measurement` the one of median throughput."""

    model: str
    protocol: str
    device: str
    workers: int
    batch_size: int
    batch_delay_ms: int
    clients: int
    rate: float
    optimization: str
    input: str
    measurement: Measurement
    repeats: tuple[Measurement, ...]
    usage: Usage = field(default_factory=Usage)
    server: ServerFigures = field(default_factory=ServerFigures)
    threads: int = 0
