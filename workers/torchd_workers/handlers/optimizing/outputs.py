"""The tensors in what a model gives, whatever it wraps them in, and how far two models' are apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch

from torchd_workers.handlers.optimizing.report import TOP1_INPUTS, Difference

# What models that also give other things call the scores of their classes.
LOGITS = "logits"


class NotComparable(Exception):
    """Nothing can be said about two models' outputs; the message says why."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the sample requests gave, one element per batch: its floating-point tensors by their place."""

    inputs: int
    batches: Sequence[Mapping[str, torch.Tensor]]


def tensors_of(output: Any) -> dict[str, torch.Tensor]:
    """The floating-point tensors of an output by their place in it, as float32 in main memory."""
    return {place: tensor.detach().to("cpu", torch.float32) for place, tensor in _found("", output)}


def difference(original: Outputs, now: Outputs) -> Difference:
    """How far the outputs are from the original's; NotComparable says why that cannot be told."""
    places = sorted({place for batch in original.batches for place in batch})
    if not places:
        raise NotComparable("the outputs hold no floating-point tensor")
    worst = max((_apart(original, now, place) for place in places), key=lambda found: found[2])
    equal = _equal_top1(original, now, places)
    return Difference(
        original.inputs,
        *worst,
        equal_top1=equal,
        top1_judged=equal is not None and original.inputs >= TOP1_INPUTS,
    )


def _found(place: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield place, value
        return
    if isinstance(value, Mapping):  # transformers' outputs are such
        items: Any = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    elif is_dataclass(value) and not isinstance(value, type):
        items = vars(value).items()
    else:
        return
    for name, each in items:
        yield from _found(f"{place}.{name}" if place else str(name), each)


def _apart(original: Outputs, now: Outputs, place: str) -> tuple[float, float, float]:
    """The largest difference of the tensors at this place, the original's standard deviation, and their ratio."""
    largest = 0.0
    values = []
    for before, after in zip(original.batches, now.batches, strict=True):
        if place not in before:
            continue
        if place not in after or after[place].shape != before[place].shape:
            return math.inf, 0.0, math.inf
        apart = (after[place] - before[place]).abs()
        # Masks are of infinities, which are equal and have no difference.
        apart[after[place] == before[place]] = 0.0
        apart[before[place].isnan() & after[place].isnan()] = 0.0
        if apart.numel():
            largest = max(largest, float(apart.nan_to_num(nan=math.inf, posinf=math.inf).max()))
        values.append(before[place][before[place].isfinite()])
    every = torch.cat(values)
    deviation = float(every.std()) if every.numel() > 1 else 0.0
    if deviation == 0.0 and 0.0 < largest < math.inf:
        raise NotComparable(f"the outputs of {original.inputs} inputs do not vary, so there is no scale: add samples")
    return largest, deviation, largest / deviation if deviation else largest


def _equal_top1(original: Outputs, now: Outputs, places: Sequence[str]) -> float | None:
    equal = rows = 0
    for before, after in zip(original.batches, now.batches, strict=True):
        for place in places:
            if place in before and place in after and _has_classes(place, before[place], places):
                same = before[place].argmax(-1) == after[place].argmax(-1)
                equal, rows = equal + int(same.sum()), rows + same.numel()
    return equal / rows if rows else None


def _has_classes(place: str, tensor: torch.Tensor, places: Sequence[str]) -> bool:
    """Scores of classes, and no embedding: what is called so, or the one table that a model gives."""
    if tensor.dim() < 2 or tensor.shape[-1] < 2:
        return False
    return place.split(".")[-1] == LOGITS or (len(places) == 1 and tensor.dim() == 2)
