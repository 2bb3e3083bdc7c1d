"""The `optimize` entry of model-config.yaml: how a model is to be made faster. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Optimize:
    """What is wished for. The names of the fields are the entry's keys."""

    # The type a model computes in; None leaves it as its weights are.
    dtype: str | None = None
    # Whether inputs travel to a CUDA device by way of pinned memory.
    pin_memory: bool = True


def optimize_of(config: dict[str, Any]) -> Optimize:
    """The entry of a model-config.yaml; ValueError names what cannot be understood."""
    entry = config.get("optimize") or {}
    if not isinstance(entry, dict):
        raise ValueError(f"model-config.yaml has optimize: {entry!r}; it must be a mapping, like {{dtype: bfloat16}}")
    known = [field.name for field in fields(Optimize)]
    unknown = [str(key) for key in entry if key not in known]
    if unknown:
        raise ValueError(f"optimize has the unknown entry {', '.join(unknown)}; it may have {', '.join(known)}")
    wish = Optimize(**entry)
    if wish.dtype not in (None, *DTYPES):
        raise ValueError(f"optimize.dtype is {wish.dtype!r}; it may be {', '.join(DTYPES)}")
    if not isinstance(wish.pin_memory, bool):
        raise ValueError(f"optimize.pin_memory is {wish.pin_memory!r}; it may be true or false")
    return wish
