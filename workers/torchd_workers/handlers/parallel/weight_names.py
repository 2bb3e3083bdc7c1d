"""Which tensors of a checkpoint make which weights of a model: other names, other prefixes, several made into one."""

from __future__ import annotations

import importlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from torchd_workers.handlers.parallel.weight_files import Checkpoint


@dataclass(frozen=True, slots=True)
class Source:
    """What a weight is made of: one tensor as it is, or several that transformers' converter makes into weights."""

    weight: str
    tensors: tuple[str, ...]
    patterns: tuple[str, ...] = ()
    converter: Any = None


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """How a whole model comes out of a checkpoint. Made before the model is split, it serves each of its parts.

    `tied` has, for a weight, all names of the one it shares its numbers with, its own included.
    """

    sources: Mapping[str, Source]
    tied: Mapping[str, tuple[str, ...]]
    unexpected: tuple[str, ...]
    config: Any = None


def plan_for(model: torch.nn.Module, checkpoint: Checkpoint) -> WeightPlan:
    """How `model`, whole and usually still empty, comes out of the checkpoint."""
    wanted = model.state_dict()
    rules = _Rules(model, wanted)
    sources: dict[str, Source] = {}
    unexpected = []
    for name in sorted(checkpoint.names(), key=_natural):
        weight, pattern, converter = rules.apply(name)
        if weight not in wanted:
            unexpected.append(name)
        elif weight not in sources:
            patterns = (pattern,) if pattern is not None else ()
            sources[weight] = Source(weight, (name,), patterns, converter)
        elif converter is not None and pattern is not None:
            before = sources[weight]
            sources[weight] = Source(
                weight, (*before.tensors, name), (*before.patterns, pattern), before.converter or converter
            )
    ignored = _ignored(model)
    return WeightPlan(
        sources,
        _tied(model),
        tuple(name for name in unexpected if not any(re.search(pattern, name) for pattern in ignored)),
        getattr(model, "config", None),
    )


class _Rules:
    """transformers' own rules for one model, where it is one of theirs; else every tensor is named as its weight."""

    def __init__(self, model: torch.nn.Module, wanted: Mapping[str, Any]) -> None:
        self._wanted = wanted
        self._prefix: str = getattr(model, "base_model_prefix", "")
        self._renamings: list[Any] = []
        self._converters: list[Any] = []
        if not (hasattr(model, "config") and self._prefix):
            return
        try:
            mapping = importlib.import_module("transformers.conversion_mapping")
            loading = importlib.import_module("transformers.core_model_loading")
        except ModuleNotFoundError:  # before transformers 5 there were none to speak of
            return
        found = mapping.get_model_conversion_mapping(model)
        self._renamings = [rule for rule in found if isinstance(rule, loading.WeightRenaming)]
        self._converters = [rule for rule in found if isinstance(rule, loading.WeightConverter)]

    def apply(self, name: str) -> tuple[str, str | None, Any]:
        """The weight a tensor belongs to, and what makes it out of tensors that match which pattern, if anything."""
        renamed = name
        for rule in self._renamings:
            renamed, _ = rule.rename_source_key(renamed)
        weight, pattern, converter = self._converted(renamed)
        weight = self._with_prefix(weight)
        return (weight, pattern, converter) if weight in self._wanted else (self._with_prefix(name), None, None)

    def _converted(self, name: str) -> tuple[str, str | None, Any]:
        for converter in self._converters:
            weight, pattern = converter.rename_source_key(name)
            if pattern is not None:
                return weight, pattern, converter
        return name, None, None

    def _with_prefix(self, name: str) -> str:
        """A checkpoint of the model without its head has no prefix, one of the model with a head has it."""
        if not self._prefix or name in self._wanted:
            return name
        without = name.removeprefix(f"{self._prefix}.")
        if without != name and without in self._wanted:
            return without
        return f"{self._prefix}.{name}" if f"{self._prefix}.{name}" in self._wanted else name


def convert(source: Source, tensors: Sequence[torch.Tensor], plan: WeightPlan) -> dict[str, torch.Tensor]:
    """The weights that a converter makes of these tensors, by name."""
    converter = deepcopy(source.converter)
    for name, pattern, tensor in zip(source.tensors, source.patterns, tensors, strict=True):
        converter.add_tensor(source.weight, name, pattern, _Given(tensor))
    made = converter.convert(source.weight, config=plan.config)
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


class _Given:
    """A tensor as a converter takes it: to be called."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __call__(self) -> torch.Tensor:
        return self._tensor


def _tied(model: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    same: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        same[id(parameter)].append(name)
    groups = [names for names in same.values() if len(names) > 1]
    return {name: tuple(names) for names in groups for name in names}


def _ignored(model: torch.nn.Module) -> list[str]:
    """Patterns of tensors that no weight is made of, and that need no word: what models once kept and now compute."""
    own = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    return [*own, r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$"]


def _natural(name: str) -> list[tuple[bool, int | str]]:
    """Layers 2 and 10 in their order, as lists of modules are stacked."""
    return [(not part.isdigit(), int(part) if part.isdigit() else part) for part in name.split(".")]
