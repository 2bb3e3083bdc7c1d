"""How much is asked, and how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """A closed loop of `clients`, each of which asks again when it has its answer; or, with `rate`, an open one.

    In the open loop requests fall due at random (Poisson, `rate` a second) whatever the server does, and the time of an
    answer counts from when its request was due: a server that stalls cannot hide it (no coordinated omission).
    `clients` is then how many may be on their way at once; what finds none free waits, and its wait counts.
    It ends after `requests` or `seconds`, whichever comes first; 0 leaves that bound out. Times in seconds.
    """

    clients: int = 1
    rate: float = 0.0
    requests: int = 0
    seconds: float = 0.0
    # Not counted, before what counts.
    warmup_requests: int = 0
    warmup_seconds: float = 0.0
    # What has no answer by then is counted as an error, "no answer within ...".
    timeout: float = 120.0
    # Processes that ask; 0 takes as many as are needed not to be the bottleneck.
    processes: int = 0
    seed: int = 0
    # gRPC: connections of each process; its clients share them as the threads of an application share a channel.
    connections: int = 1
