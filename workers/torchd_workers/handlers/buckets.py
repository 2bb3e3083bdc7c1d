"""What an archive says of its traced programs: the fixed shapes each was traced at, and which of them a batch takes.

The description stands under `traced` in model-config.yaml, or in config.json, the file that Neuron's examples read:
`batch_size` and `max_length` for one program, `buckets` for several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torchd_workers.handlers.rows import BadInput

BACKENDS = ("neuron", "cpu")


class DescriptionInvalid(ValueError):
    """The archive's description of its traced programs will not do; the model does not load."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """One program: the batch size it was traced at, and the length, if its inputs have one (dimension 1)."""

    file: str
    batch_size: int
    max_length: int | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """One input of every program; `shape` is a row's, without the batch, None where the length stands."""

    name: str
    dtype: torch.dtype | None = None
    shape: tuple[int | None, ...] | None = None
    padding: float = 0
    # Whether it has a length: dimension 1, which is padded up to the bucket's.
    sequence: bool = True


@dataclass(frozen=True, slots=True)
class TracedModel:
    """The programs of one archive, which differ in nothing but their shapes.

    `sequence_outputs` are outputs, by place or name, that have the length as dimension 1 as well. `backend` is what
    traced them; "" where nothing says so.
    """

    buckets: tuple[Bucket, ...]
    inputs: tuple[Input, ...] = ()
    sequence_outputs: tuple[int | str, ...] = ()
    backend: str = ""

    @property
    def max_length(self) -> int | None:
        """The length of the longest bucket; None where inputs have no length."""
        return max((bucket.max_length for bucket in self.buckets if bucket.max_length is not None), default=None)

    def bucket_for(self, rows: int, length: int | None) -> Bucket:
        """The smallest bucket that fits; where none has room for so many rows, the one that takes the most of them."""
        long_enough = [
            bucket
            for bucket in self.buckets
            if bucket.max_length is None or length is None or bucket.max_length >= length
        ]
        if not long_enough:
            raise BadInput(f"the input is {length} long; the longest program of this model takes {self.max_length}")
        roomy = [bucket for bucket in long_enough if bucket.batch_size >= rows]
        if roomy:
            return min(roomy, key=lambda bucket: (bucket.batch_size * (bucket.max_length or 1), bucket.batch_size))
        return max(long_enough, key=lambda bucket: (bucket.batch_size, -(bucket.max_length or 0)))


def traced_model(description: Mapping[str, Any], serialized_file: str | None) -> TracedModel:
    """The model that a description tells of; a bucket that names no file is `serialized_file`."""
    entries = description.get("buckets", [description])
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise DescriptionInvalid(f"buckets: {entries!r} will not do; expected a list of at least one bucket")
    buckets = tuple(_bucket(entry, serialized_file) for entry in entries)
    if len({bucket.max_length is None for bucket in buckets}) > 1:
        raise DescriptionInvalid(
            "buckets: some have a max_length and some have none; give it to all of them or to none"
        )
    backend = description.get("backend", "")
    if backend not in ("", *BACKENDS):
        raise DescriptionInvalid(f"backend: {backend!r} will not do; expected {' or '.join(map(repr, BACKENDS))}")
    return TracedModel(
        buckets,
        tuple(map(_input, description.get("inputs", ()))),
        tuple(description.get("sequence_outputs", ())),
        backend,
    )


def _bucket(entry: Any, serialized_file: str | None) -> Bucket:
    if not isinstance(entry, Mapping):
        raise DescriptionInvalid(f"buckets: {entry!r} will not do; expected file, batch_size and max_length")
    file = entry.get("file", serialized_file)
    if not isinstance(file, str) or not file:
        raise DescriptionInvalid(f"bucket {dict(entry)} names no file, and the archive has no --serialized-file")
    batch_size, max_length = entry.get("batch_size"), entry.get("max_length")
    return Bucket(file, _positive("batch_size", batch_size), max_length and _positive("max_length", max_length))


def _positive(key: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise DescriptionInvalid(f"{key}: {value!r} will not do; expected the whole number the program was traced at")
    return value


def _input(entry: Any) -> Input:
    if isinstance(entry, str):
        return Input(entry)
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise DescriptionInvalid(f"inputs: {entry!r} will not do; expected a name, or name, dtype, shape, padding")
    dtype = entry.get("dtype")
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    if dtype is not None and not isinstance(found, torch.dtype):
        raise DescriptionInvalid(f"inputs: torch has no dtype {dtype!r}; expected one such as 'int64' or 'float32'")
    shape = entry.get("shape")
    return Input(
        entry["name"],
        found,
        None if shape is None else tuple(shape),
        entry.get("padding", 0),
        entry.get("sequence", True),
    )
