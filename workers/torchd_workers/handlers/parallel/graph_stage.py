"""A stage of any other module: a stretch of its graph, found by symbolic tracing.

torch.distributed.pipelining has a tracer of its own, but it wants example inputs and freezes their sizes, and requests
come in batches of every size. torch.fx traces without inputs, as PiPPy did, and a stretch of its graph takes any batch.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from torchd_workers.handlers.parallel.blocks import CannotCut
from torchd_workers.handlers.parallel.partition import shares
from torchd_workers.handlers.parallel.skeleton import bytes_of, skeleton_of
from torchd_workers.handlers.parallel.stages import Tensors


class GraphStage:
    """One rank's stretch of a module's graph. What a later stretch needs goes through all stages before it."""

    wants_inputs = False

    def __init__(self, model: torch.nn.Module, stages: int, stage: int, input_names: Sequence[str] = ()) -> None:
        """`input_names` are the arguments that requests give, all without a default if none are named."""
        self._model = type(model).__name__
        graph = _traced(model, input_names)
        cuts = _cuts(model, graph, stages)
        self._skeletons = _stretches(skeleton_of(graph), cuts)
        self._own: torch.nn.Module = _stretches(graph, cuts)[stage]
        self._stage = stage

    @property
    def module(self) -> torch.nn.Module:
        """What this rank keeps of the model."""
        return self._own

    @property
    def input_names(self) -> list[str]:
        """The inputs, in the order of the arguments."""
        return [str(node.target) for node in self._skeletons[0].graph.nodes if node.op == "placeholder"]

    def shape_key(self, inputs: Tensors) -> tuple[Any, ...]:
        """See Stage."""
        return tuple((name, *one.shape, str(one.dtype)) for name, one in sorted(inputs.items()))

    def borders(self, inputs: Tensors) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """See Stage. Runs the whole model without weights, so a request that does not fit is found before it begins."""
        passing: Any = tuple(inputs[name].to("meta") for name in self.input_names)
        between = []
        with torch.no_grad():
            for skeleton in self._skeletons[:-1]:
                passing = skeleton(*passing)
                odd = next((type(value) for value in passing if not isinstance(value, torch.Tensor)), None)
                if odd is not None:
                    raise CannotCut(self._model, f"a stage needs a {odd.__name__} of the one before, not only tensors")
                between.append(passing)
            named(self._model, self._skeletons[-1](*passing))
        arriving = between[self._stage - 1] if self._stage else ()
        # The last stage sends nothing on.
        return arriving, between[self._stage] if self._stage < len(between) else ()

    def new_cache(self) -> Any:
        """See Stage."""
        raise NotImplementedError(f"{self._model} keeps nothing between the steps of a generation")

    def reorder(self, caches: list[Any], rows: torch.Tensor) -> None:
        """See Stage."""
        raise NotImplementedError(f"{self._model} keeps nothing between the steps of a generation")

    def run(
        self, arriving: tuple[torch.Tensor, ...], inputs: Tensors, options: Mapping[str, Any], cache: Any
    ) -> tuple[torch.Tensor, ...] | dict[str, torch.Tensor]:
        """See Stage."""
        output = self._own(*(arriving if self._stage else (inputs[name] for name in self.input_names)))
        return named(self._model, output) if self._stage == len(self._skeletons) - 1 else tuple(output)


def named(model: str, output: Any) -> dict[str, torch.Tensor]:
    """A model's output as tensors by name; `unnamed` makes it whole again."""
    if isinstance(output, torch.Tensor):
        return {"": output}
    entries = (
        {f".{key}": value for key, value in output.items()}
        if isinstance(output, dict)
        else {str(index): value for index, value in enumerate(output)}
        if isinstance(output, tuple | list)
        else {"": output}
    )
    odd = next((type(value) for value in entries.values() if not isinstance(value, torch.Tensor)), None)
    if odd is not None:
        raise CannotCut(
            model, f"its output holds a {odd.__name__}; it may be a tensor, a tuple of them or a dict of them"
        )
    return entries


def unnamed(outputs: Mapping[str, torch.Tensor]) -> Any:
    """A tensor, a tuple or a dict again."""
    if "" in outputs:
        return outputs[""]
    if all(name.startswith(".") for name in outputs):
        return {name[1:]: value for name, value in outputs.items()}
    return tuple(outputs.values())


def _traced(model: torch.nn.Module, input_names: Sequence[str]) -> fx.GraphModule:
    parameters = inspect.signature(model.forward).parameters
    wanted = input_names or [name for name, one in parameters.items() if one.default is inspect.Parameter.empty]
    strange = [name for name in wanted if name not in parameters] if input_names else []
    if strange:
        raise CannotCut(model, f"its forward has no argument {', '.join(strange)}; it has {', '.join(parameters)}")
    fixed = {name: one.default for name, one in parameters.items() if name not in wanted}
    unset = [name for name, value in fixed.items() if value is inspect.Parameter.empty]
    if unset:
        raise CannotCut(model, f"nobody gives {', '.join(unset)}: no default, and not among the input names")
    try:
        graph = fx.symbolic_trace(model, concrete_args=fixed or None)
    except Exception as error:
        raise CannotCut(model, f"its forward cannot be traced: {error}") from error
    for node in [node for node in graph.graph.nodes if node.op == "placeholder" and node.target not in wanted]:
        _erase(graph.graph, node)
    graph.recompile()
    return graph


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Takes out a fixed argument, with the checks that tracing put in of its value."""
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)


def _cuts(model: torch.nn.Module, graph: fx.GraphModule, stages: int) -> list[int]:
    """Before which nodes a new stage begins, where as little as can be crosses and the weights are shared evenly."""
    nodes = list(graph.graph.nodes)
    counted: set[str] = set()
    weights = [_bytes_at(graph, node, counted) for node in nodes]
    first = sum(node.op == "placeholder" for node in nodes)
    places = range(first + 1, len(nodes) - 1)
    # Where one value crosses, the model is narrow; elsewhere only if there are too few such places.
    narrow = [place for place in places if len(_crossing(nodes, place)) == 1 and any(weights[place:])]
    chosen = [first, *(narrow if len(narrow) >= stages - 1 else places), len(nodes) - 1]
    parts = [sum(weights[start:end]) for start, end in pairwise(chosen)]
    if len(parts) < stages:
        raise CannotCut(model, f"its graph has {len(parts)} parts, fewer than {stages} stages")
    return [chosen[share.start] for share in shares(parts, stages)[1:]]


def _crossing(nodes: Sequence[fx.Node], place: int) -> list[fx.Node]:
    """The values made before a place that are used from there on."""
    later = set(nodes[place:])
    return [node for node in nodes[:place] if any(user in later for user in node.users)]


def _stretches(graph: fx.GraphModule, cuts: Sequence[int]) -> list[fx.GraphModule]:
    nodes = list(graph.graph.nodes)
    first = sum(node.op == "placeholder" for node in nodes)
    starts = [first, *cuts]
    stretches = []
    for start, end in zip(starts, [*cuts, len(nodes) - 1], strict=True):
        arriving = nodes[:first] if start == first else _crossing(nodes, start)
        leaving = _crossing(nodes, end) if end < len(nodes) - 1 else None
        stretches.append(_stretch(graph, arriving, nodes[start:end], leaving, nodes[-1]))
    return stretches


def _stretch(
    graph: fx.GraphModule,
    arriving: Sequence[fx.Node],
    nodes: Sequence[fx.Node],
    leaving: Sequence[fx.Node] | None,
    output: fx.Node,
) -> fx.GraphModule:
    own = fx.Graph()
    copies = {node: own.placeholder(str(node.target) if node.op == "placeholder" else node.name) for node in arriving}
    for node in nodes:
        copies[node] = own.node_copy(node, copies.__getitem__)
    result: Any = tuple(leaving) if leaving is not None else output.args[0]
    own.output(fx.map_arg(result, copies.__getitem__))
    return fx.GraphModule(graph, own)


def _bytes_at(graph: fx.GraphModule, node: fx.Node, counted: set[str]) -> int:
    """The weights a node brings in, each counted where it comes first."""
    path = str(node.target)
    if node.op not in ("call_module", "get_attr") or path in counted:
        return 0
    counted.add(path)
    if node.op == "call_module":
        return bytes_of(graph.get_submodule(path))
    value = operator.attrgetter(path)(graph)
    return int(value.nbytes) if isinstance(value, torch.Tensor) else 0
