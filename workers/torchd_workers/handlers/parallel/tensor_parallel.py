"""Tensor parallelism: every rank has a part of each layer, and together they give what the whole model would.

A model is split before its weights are there (on the meta device: a loader then reads this rank's parts only, which
DTensor names) or after; `settle` makes it ready to run.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from torchd_workers.handlers.parallel.plans import CannotSplit, plan_of
from torchd_workers.handlers.parallel.ranks import Ranks
from torchd_workers.handlers.parallel.styles import STYLES, Style

logger = logging.getLogger(__name__)


def split(model: Any, ranks: Ranks) -> None:
    """Makes the model's parameters DTensors of which this rank holds its part; CannotSplit leaves it as it was.

    Every rank must call it with the same model.
    """
    if ranks.size == 1:
        return
    layers = _layers(model, ranks)
    mesh = ranks.mesh
    # A parameter that two layers share stays one.
    placed: dict[int, nn.Parameter] = {}
    for layer, style in layers.values():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if id(parameter) not in placed:
                part = distribute_tensor(parameter.detach(), mesh, [style.place(parameter)], src_data_rank=None)
                placed[id(parameter)] = nn.Parameter(part, requires_grad=False)
                placed[id(placed[id(parameter)])] = placed[id(parameter)]
            layer._parameters[name] = placed[id(parameter)]
        if style.forward is not None:
            layer.forward = style.forward(layer, ranks)
    logger.info("%s: %d layers split over %d ranks", type(model).__name__, len(layers), ranks.size)


def settle(model: nn.Module) -> None:
    """Puts this rank's plain tensors in the place of DTensors: the layers compute with those."""
    placed: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not isinstance(parameter.data, DTensor):
                continue
            if id(parameter) not in placed:
                # A part that is a view would keep the whole in memory.
                local = parameter.data.to_local().contiguous()
                own = local if local.untyped_storage().nbytes() == local.nbytes else local.clone()
                placed[id(parameter)] = nn.Parameter(own, requires_grad=False)
            module._parameters[name] = placed[id(parameter)]


def _layers(model: Any, ranks: Ranks) -> dict[str, tuple[nn.Module, Style]]:
    """The layers to split, by name, all checked."""
    plan = plan_of(model, ranks.size)
    unknown = sorted({style for style in plan.values() if style not in STYLES})
    if unknown:
        raise CannotSplit(
            model, ranks.size, f"its plan has the styles {', '.join(unknown)}, which torchd does not know"
        )
    modules = dict(model.named_modules())
    for name in plan:
        if name not in modules:
            raise CannotSplit(model, ranks.size, f"its plan splits {name}, a parameter of no layer of its own")
    _split_tied_embeddings(model, plan, modules)
    layers = {name: (modules[name], STYLES[style]) for name, style in plan.items()}
    for name, (layer, style) in layers.items():
        if style.of and not any(type(layer).forward is cls.forward for cls in style.of):
            raise CannotSplit(model, ranks.size, f"{name} is a {type(layer).__name__}, of which no part can be taken")
    return {
        name: (layer, style) for name, (layer, style) in layers.items() if _divides(model, ranks, name, layer, style)
    }


def _split_tied_embeddings(model: Any, plan: dict[str, str], modules: dict[str, nn.Module]) -> None:
    """Embeddings whose weight is the output layer's are split with it, or memory would hold both."""
    embeddings = model.get_input_embeddings()
    shared = [name for name in plan if getattr(modules[name], "weight", None) is embeddings.weight]
    if not shared:
        return
    plan.update({name: "embedding_rowwise" for name, module in modules.items() if module is embeddings})


def _divides(model: Any, ranks: Ranks, name: str, layer: nn.Module, style: Style) -> bool:
    """Whether to split the layer, all of whose parameters divide by the number of ranks."""
    for parameter_name, parameter in layer.named_parameters(recurse=False):
        place = style.place(parameter)
        if isinstance(place, Shard) and parameter.shape[place.dim] % ranks.size:
            if style.may_stay_whole:
                return False
            why = f"{name}.{parameter_name} has {parameter.shape[place.dim]} rows or columns, which cannot be dealt out"
            raise CannotSplit(model, ranks.size, why)
    return True
