"""Putting a checkpoint's tensors into a model, one at a time, and only those that a rank keeps."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from torchd_workers.handlers.parallel.load_progress import LoadProgress, Report
from torchd_workers.handlers.parallel.slices import distributed_like, is_distributed, local_slice
from torchd_workers.handlers.parallel.weight_files import Checkpoint, CheckpointUnusable, Index, some_of
from torchd_workers.handlers.parallel.weight_names import Source, WeightPlan, convert, plan_for

logger = logging.getLogger(__name__)

# Whether a rank keeps the weight of this name; which part of it, from its name and its whole shape (None: all of it).
Keep = Callable[[str], bool]
Cut = Callable[[str, torch.Size], Index | None]


class WeightsMissing(CheckpointUnusable):
    """The checkpoint lacks weights that the model has."""


class ShapesDiffer(CheckpointUnusable):
    """A tensor of the checkpoint has not the shape of the model's weight."""


@dataclass(frozen=True, slots=True)
class Filled:
    """What came of it: the weights that were loaded, their bytes, the tensors that belong to no weight."""

    loaded: tuple[str, ...]
    bytes_kept: int
    unexpected: tuple[str, ...]


def keeps_prefixes(*prefixes: str) -> Keep:
    """Keeps the modules and weights of these names and what is in them: "model.layers.1" is not "model.layers.10"."""
    return lambda name: any(name == prefix or name.startswith(f"{prefix.rstrip('.')}.") for prefix in prefixes)


def fill(
    model: torch.nn.Module,
    checkpoint: Checkpoint,
    *,
    keep: Keep | None = None,
    shard: Cut | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    progress: Report | None = None,
    plan: WeightPlan | None = None,
    mapped: bool = True,
) -> Filled:
    """Gives the model, or the part of one, its weights on `device`; what is not kept stays on the meta device.

    A weight that is a DTensor gets the part its placements say; `shard` says it for others, whose weights may have
    the whole shape or the part's already. A part of a model needs the `plan` of the whole. `mapped` lets weights on
    the CPU be views of the files, which costs no memory of the process's own.
    """
    plan = plan or plan_for(model, checkpoint)
    filling = _Filling(model, checkpoint, plan, keep or _keep_all, shard, torch.device(device), dtype, mapped)
    progress_of_load = LoadProgress(filling.total_bytes(), progress)
    for count, file in filling.run():
        progress_of_load.advance(count, file)
    filling.check_nothing_is_missing()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type != "meta":
                module._buffers[name] = buffer.to(device)
    unexpected = tuple(name for name in plan.unexpected if filling.keep(name))
    if unexpected:
        some = some_of(unexpected)
        logger.warning(
            "%s has %d tensors that the model has no place for: %s", checkpoint.folder, len(unexpected), some
        )
    return Filled(tuple(filling.loaded), progress_of_load.done_bytes, unexpected)


class _Filling:
    """One fill on its way."""

    def __init__(
        self,
        model: torch.nn.Module,
        checkpoint: Checkpoint,
        plan: WeightPlan,
        keep: Keep,
        cut: Cut | None,
        device: torch.device,
        dtype: torch.dtype | None,
        mapped: bool,
    ) -> None:
        self.loaded: list[str] = []
        self._model = model
        self._checkpoint = checkpoint
        self._plan = plan
        self.keep = keep
        self._cut = cut
        self._device = device
        self._dtype = dtype
        self._mapped = mapped
        buffers = {name for name, _ in model.named_buffers()}
        self._buffers = {name for name in model.state_dict() if name in buffers}
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._places = self._places_by_weight()

    def _places_by_weight(self) -> dict[str, list[str]]:
        """For each weight to be made: the names in this model that get it."""
        places: dict[str, list[str]] = {}
        for name in (*self._parameters, *self._buffers):
            if not self.keep(name):
                continue
            tied = self._plan.tied.get(name, (name,))
            found = name if name in self._plan.sources else next((one for one in tied if one in self._plan.sources), "")
            if found:
                places.setdefault(found, []).append(name)
        return self._untied_if_different(places)

    def _untied_if_different(self, places: dict[str, list[str]]) -> dict[str, list[str]]:
        """Where a checkpoint has a tensor for each of two tied names, they are one only if the tensors are equal."""
        for weight in list(places):
            for other in self._plan.tied.get(weight, ())[:]:
                if other <= weight or weight not in places or other not in places:
                    continue
                if self._are_equal(weight, other):
                    places[weight] += places.pop(other)
                else:
                    logger.warning("%s and %s differ in the checkpoint, so they are not tied", weight, other)
        return places

    def _are_equal(self, one: str, other: str) -> bool:
        [first], [second] = self._plan.sources[one].tensors, self._plan.sources[other].tensors
        view = self._checkpoint.read
        return torch.equal(view(first, mapped=True), view(second, mapped=True))

    def _sources(self) -> list[Source]:
        """What is to be read, in the order of the files."""
        order = {name: place for place, name in enumerate(self._checkpoint.names())}
        # A converter that makes several weights stands under the first of them, whether that is kept or not.
        wanted = [source for weight, source in self._plan.sources.items() if weight in self._places or source.converter]
        wanted = [source for source in wanted if source.converter is None or self._is_any_kept(source)]
        return sorted(wanted, key=lambda source: order[source.tensors[0]])

    def _is_any_kept(self, source: Source) -> bool:
        if source.weight in self._places:
            return True
        # The others it makes are beside the first, in the same module.
        module = source.weight.rpartition(".")[0].rpartition(".")[0]
        beside = f"{module}." if module else ""
        return any(name.startswith(beside) and self.keep(name) for name in self._parameters)

    def total_bytes(self) -> int:
        """The bytes that the kept weights have in the files."""
        return sum(self._bytes_of(source, name) for source in self._sources() for name in source.tensors)

    def _bytes_of(self, source: Source, name: str) -> int:
        head = self._checkpoint.head(name)
        shape = head.shape
        index = () if source.converter is not None else self._index(source.weight, shape)
        part = [len(range(*cut.indices(length))) for cut, length in zip(index, shape, strict=False)]
        return prod(part) * prod(shape[len(part) :]) * head.dtype.itemsize

    def run(self) -> Iterator[tuple[int, str]]:
        """Reads and places; gives the bytes of each and the file they came from."""
        for source in self._sources():
            file = self._checkpoint.head(source.tensors[0]).file
            yield (self._convert(source) if source.converter is not None else self._take(source)), file

    def _take(self, source: Source) -> int:
        [name] = source.tensors
        shape = self._checkpoint.head(name).shape
        index = self._index(source.weight, shape)
        dtype = self._dtype_for(self._target(source.weight))
        value = self._checkpoint.read(name, index, self._device, dtype, self._mapped)
        self._place(source.weight, value, shape)
        return self._bytes_of(source, name)

    def _convert(self, source: Source) -> int:
        tensors = [self._checkpoint.read(name, mapped=True) for name in source.tensors]
        count = sum(tensor.nbytes for tensor in tensors)
        for weight, whole in convert(source, tensors, self._plan).items():
            if weight in self._parameters and self.keep(weight):
                self._places.setdefault(weight, [weight])
                part = whole[self._index(weight, whole.shape)]
                value = part.to(device=self._device, dtype=self._dtype_for(self._target(weight)))
                # Not a view: it would hold on to all that the converter made.
                value = value.clone() if value.data_ptr() == part.data_ptr() else value
                self._place(weight, value.contiguous(), whole.shape)
        return count

    def _target(self, weight: str) -> torch.Tensor:
        name = self._places[weight][0]
        return self._parameters[name] if name in self._parameters else self._model.get_buffer(name)

    def _dtype_for(self, target: torch.Tensor) -> torch.dtype:
        return self._dtype if self._dtype is not None and target.is_floating_point() else target.dtype

    def _index(self, weight: str, shape: torch.Size) -> Index:
        target = self._target(weight)
        if is_distributed(target):
            return local_slice(target)
        return (self._cut(self._places[weight][0], shape) or ()) if self._cut is not None else ()

    def _place(self, weight: str, value: torch.Tensor, whole: torch.Size) -> None:
        target = self._target(weight)
        if target.shape not in (whole, value.shape):
            raise ShapesDiffer(
                f"{self._checkpoint.folder} has {weight} of shape {list(whole)}; the model's is {list(target.shape)}"
            )
        if is_distributed(target):
            value = distributed_like(value, target)
        made = torch.nn.Parameter(value, requires_grad=False) if self._places[weight][0] in self._parameters else value
        for name in self._places[weight]:
            _assign(self._model, name, made)
            self.loaded.append(name)

    def check_nothing_is_missing(self) -> None:
        """Weights without values would give answers made of nothing."""
        known = set(self.loaded)
        computed = getattr(self._model, "_keys_to_ignore_on_load_missing", None) or ()
        known |= {name for name in self._buffers if any(re.search(pattern, name) for pattern in computed)}
        missing = [name for name in (*self._parameters, *self._buffers) if name not in known and self.keep(name)]
        if missing:
            raise WeightsMissing(
                f"the checkpoint {self._checkpoint.folder} lacks {len(missing)} weights that "
                f"{type(self._model).__name__} has: {some_of(missing)}; it has {some_of(self._checkpoint.names())}. "
                "Was it saved from a model with another head?"
            )


def _assign(model: torch.nn.Module, name: str, value: Any) -> None:
    owner, _, own_name = name.rpartition(".")
    module = model.get_submodule(owner) if owner else model
    table = module._parameters if own_name in module._parameters else module._buffers
    table[own_name] = value


def _keep_all(name: str) -> bool:
    return True
