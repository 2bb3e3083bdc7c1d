"""The bound of a search: which percentile of the latency may not exceed how many milliseconds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torchd_clients.tune.errors import SpaceInvalid

_FORM = re.compile(r"p(\d{1,2}(?:\.\d+)?)\s*=\s*(\d+(?:\.\d+)?)\s*(ms|s)")


@dataclass(frozen=True, slots=True)
class Slo:
    """`percent` of the answers come within `bound_ms`."""

    percent: float
    bound_ms: float

    def __str__(self) -> str:
        return f"p{self.percent:g} <= {self.bound_ms:g} ms"

    @property
    def name(self) -> str:
        """The percentile as people write it: p99."""
        return f"p{self.percent:g}"


def read_slo(text: str) -> Slo:
    """`p99=100ms`, `p99.9=1.5s`; raises SpaceInvalid."""
    found = _FORM.fullmatch(text.strip())
    bound = float(found[2]) * (1000 if found[3] == "s" else 1) if found else 0.0
    if found is None or not bound or not float(found[1]):
        raise SpaceInvalid(f"--slo {text!r} is no bound; write a percentile and a time, as in p99=100ms or p50=0.5s")
    return Slo(float(found[1]), bound)
