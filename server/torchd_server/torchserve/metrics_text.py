"""Prometheus' text as TorchServe prints it (simpleclient 0.9.0): labels end with a comma, counters have no `_total`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from decimal import Decimal

from torchd_server.torchserve.metric_families import BUCKETS, Distribution, FamilySnapshot

LABEL_CHARACTERS = 200
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


def text(families: Iterable[FamilySnapshot], names: Collection[str] = ()) -> bytes:
    """The page; with `names`, only samples of these names and the families they belong to."""
    return "".join(line for family in families for line in _family(family, names)).encode()


def _family(family: FamilySnapshot, names: Collection[str]) -> Iterator[str]:
    spec = family.spec
    samples = [
        (name, labels, value)
        for values, found in family.series.items()
        for name, labels, value in _samples(spec.name, _labels(spec.dimensions, values), found)
        if not names or name in names
    ]
    if names and not samples:
        return
    unit = spec.unit.replace("\\", "\\\\").replace("\n", "\\n")
    yield f"# HELP {spec.name} Torchserve prometheus {spec.kind} metric with unit: {unit}\n"
    yield f"# TYPE {spec.name} {spec.kind}\n"
    for name, labels, value in samples:
        yield f"{name}{{{labels}}} {number(value)}\n"


def _samples(name: str, labels: str, value: float | Distribution) -> Iterator[tuple[str, str, float]]:
    if not isinstance(value, Distribution):
        yield name, labels, value
        return
    count = 0
    for bound, inside in zip((*BUCKETS, math.inf), value.counts, strict=True):
        count += inside
        yield f"{name}_bucket", f'{labels}le="{number(bound)}",', float(count)
    yield f"{name}_count", labels, float(count)
    yield f"{name}_sum", labels, value.total


def _labels(names: Iterable[str], values: Iterable[str]) -> str:
    return "".join(
        f'{name}="{value[:LABEL_CHARACTERS].translate(_ESCAPES)}",' for name, value in zip(names, values, strict=True)
    )


def number(value: float) -> str:
    """A double as Java writes it: 1.0, 22813.1015625, 1.0E7, 1.0E-4, +Inf."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return repr(float(value))
    sign, digits, exponent = Decimal(repr(float(value))).normalize().as_tuple()
    power = len(digits) - 1 + int(exponent)
    rest = "".join(map(str, digits[1:])) or "0"
    return f"{'-' if sign else ''}{digits[0]}.{rest}E{power}"
