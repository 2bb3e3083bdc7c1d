"""How one layer is split: which part of its parameters a rank keeps, and what its forward does about the rest.

The names are those of transformers' plans. A layer computes with its rank's plain tensors; DTensor's placements say
only which part that is, so that a loader can read no more than it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import Placement
from torch.nn import functional

from torchd_workers.handlers.parallel.ranks import Ranks

Forward = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Style:
    """Where a layer's parameters go, and its forward where the layer's own does not do on a part of them."""

    place: Callable[[torch.Tensor], Placement]
    forward: Callable[[nn.Module, Ranks], Forward] | None = None
    # A layer that may stay whole on every rank where its weight does not divide: nobody sees its parts from outside.
    may_stay_whole: bool = False
    # What the layer must compute for that forward to say the same; () is anything.
    of: tuple[type[nn.Module], ...] = ()


def _gathered(layer: nn.Module, ranks: Ranks) -> Forward:
    """A layer whose output everybody needs as a whole."""
    forward = layer.forward
    return lambda *args, **kwargs: ranks.join_last(forward(*args, **kwargs))


def _summed(layer: nn.Module, ranks: Ranks) -> Forward:
    """A linear layer that has a part of the inputs: the ranks' outputs add up, and the bias is added once."""

    def forward(states: torch.Tensor) -> torch.Tensor:
        weight: Any = layer.weight
        output = ranks.sum(functional.linear(states, weight))
        bias: Any = layer.bias
        return output if bias is None else output + bias

    return forward


def _summed_of_whole(layer: nn.Module, ranks: Ranks) -> Forward:
    """The same, given the whole input."""
    forward = _summed(layer, ranks)
    return lambda states: forward(states.chunk(ranks.size, dim=-1)[ranks.rank])


def _looked_up(layer: nn.Module, ranks: Ranks) -> Forward:
    """An embedding that has a part of the vocabulary: who has the token gives its row, the others zeros."""
    look_up = layer.forward
    # It says which row learns nothing, by a number that counts the whole vocabulary.
    layer.padding_idx = None  # type: ignore[assignment]

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        weight: Any = layer.weight
        # The other ranks' tokens look up some row of this one's, which is then made zero.
        own = tokens - ranks.rank * len(weight)
        foreign = (own < 0) | (own >= len(weight))
        rows = look_up(own.masked_fill(foreign, 0))
        return ranks.sum(rows.masked_fill(foreign.unsqueeze(-1), 0))

    return forward


def _by_output(parameter: torch.Tensor) -> Placement:
    # A matrix is (output, input), a bias has outputs only.
    return Shard(0)


def _by_input(parameter: torch.Tensor) -> Placement:
    return Replicate() if parameter.ndim == 1 else Shard(1)


def _whole(parameter: torch.Tensor) -> Placement:
    return Replicate()


STYLES: Mapping[str, Style] = {
    "colwise": Style(_by_output),
    "colwise_gather_output": Style(_by_output, _gathered, may_stay_whole=True),
    "colwise_rep": Style(_by_output, _gathered, may_stay_whole=True),
    "embedding_rowwise": Style(_by_output, _looked_up, may_stay_whole=True),
    "replicate": Style(_whole),
    "replicated_with_grad_allreduce": Style(_whole),
    "rowwise": Style(_by_input, _summed, of=(nn.Linear,)),
    "rowwise_rep": Style(_by_input, _summed_of_whole, may_stay_whole=True, of=(nn.Linear,)),
    "rowwise_split_input": Style(_by_input, _summed_of_whole, may_stay_whole=True, of=(nn.Linear,)),
}
