"""Where a transformers model can be cut: its row of blocks, what runs before them and what runs after them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from torchd_workers.handlers.parallel.partition import shares
from torchd_workers.handlers.parallel.skeleton import bytes_of, own_bytes_of, skeleton_of


class CannotCut(ValueError):
    """The model does not fall into stages."""

    def __init__(self, model: object, reason: str) -> None:
        name = model if isinstance(model, str) else type(model).__name__
        super().__init__(f"{name} cannot be cut into a pipeline: {reason}")


@dataclass(frozen=True, slots=True)
class Layout:
    """A model as a row of blocks."""

    blocks: str  # the path of the list of blocks
    table: str  # the path of the input embedding
    after: tuple[str, ...]  # the modules with weights that only run after the last block
    hidden_size: int
    dtype: torch.dtype  # of what goes from block to block
    output: type[Any]  # what the model's forward returns
    stages: tuple[range, ...]  # the blocks of each stage


def layout_of(model: torch.nn.Module, stages: int) -> Layout:
    """How the model falls into this many stages of about equal weight, the head with the last; else CannotCut."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise CannotCut(model, "an encoder and a decoder are two rows of blocks")
    table = _path_of(model, getattr(model, "get_input_embeddings", lambda: None)())
    if config is None or table is None:
        raise CannotCut(model, "only transformers models that take input_ids have blocks we can find")
    path, blocks = _longest_row(model)
    if len(blocks) < stages:
        raise CannotCut(model, f"{path} holds {len(blocks)} blocks, fewer than {stages} stages")
    seen = _Run(model, path)
    by_path = dict(model.named_modules())
    return Layout(
        blocks=path,
        table=table,
        after=tuple(seen.after),
        hidden_size=seen.hidden_size,
        dtype=seen.dtype,
        output=seen.output,
        stages=tuple(
            shares(
                [bytes_of(block) for block in blocks],
                stages,
                before=own_bytes_of(*(by_path[one] for one in seen.before)),
                after=own_bytes_of(*(by_path[one] for one in seen.after)),
            )
        ),
    )


class Absent(torch.nn.Module):
    """Stands where another stage has the block: passes on what it gets, and has no weights."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        # Models ask their blocks for plain facts, such as the kind of attention.
        facts = {name: value for name, value in vars(block).items() if isinstance(value, str | int | float)}
        vars(self).update({name: value for name, value in facts.items() if not name.startswith("_")})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The hidden states as they came."""
        return args[0] if args else kwargs["hidden_states"]


class AbsentTable(torch.nn.Module):
    """Stands where the first stage has the input embedding: rows of the right shape, without memory behind them."""

    def __init__(self, table: torch.nn.Module) -> None:
        super().__init__()
        weight: Any = table.weight
        self.embedding_dim = int(weight.shape[1])
        self.dtype = weight.dtype

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Zeros for each id."""
        return torch.zeros((), dtype=self.dtype, device=input_ids.device).expand(*input_ids.shape, self.embedding_dim)


def keep_stage(model: torch.nn.Module, layout: Layout, stage: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Lets go of everything another stage runs; gives the stage's first and last block."""
    own = layout.stages[stage]
    blocks: Any = model.get_submodule(layout.blocks)
    for index, block in enumerate(blocks):
        if index not in own:
            blocks[index] = Absent(block)
    if stage > 0:
        model.set_submodule(layout.table, AbsentTable(model.get_submodule(layout.table)))
    if stage < len(layout.stages) - 1:
        for path in layout.after:
            # The weights alone: inside such a module there may be others that this stage runs.
            module = model.get_submodule(path)
            for name, _ in list(module.named_parameters(recurse=False)):
                setattr(module, name, None)
    return blocks[own[0]], blocks[own[-1]]


class _Run:
    """What one run of the model's skeleton does, told by hooks."""

    def __init__(self, model: torch.nn.Module, path: str) -> None:
        skeleton = skeleton_of(model).eval()
        config: Any = skeleton.config
        config.pad_token_id = None  # else models look for it among the inputs, which have no values here
        blocks: Any = skeleton.get_submodule(path)
        self._model, self._blocks_run, self._made = model, 0, [torch.Tensor()]
        called: dict[bool, list[str]] = {False: [], True: []}
        for name, module in _outside(skeleton, path):
            module.register_forward_pre_hook(lambda *_, name=name: called[self._blocks_run > 0].append(name))
        for block in blocks:
            block.register_forward_pre_hook(self._enter, with_kwargs=True)
            block.register_forward_hook(self._leave)
        try:
            with torch.no_grad():
                output = skeleton(input_ids=torch.zeros(1, 2, dtype=torch.long, device="meta"))
        except CannotCut:
            raise
        except Exception as error:
            raise CannotCut(model, f"a run of it without weights fails: {error}") from error
        if self._blocks_run != len(blocks):
            raise CannotCut(model, f"{self._blocks_run} of the {len(blocks)} blocks in {path} ran, each once expected")
        self.output: type[Any] = type(output)
        self.before = list(dict.fromkeys(called[False]))
        self.after = [name for name in dict.fromkeys(called[True]) if name not in self.before]

    def _enter(self, block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(hidden, torch.Tensor):
            raise CannotCut(self._model, f"{type(block).__name__} does not take the hidden states first")
        self.hidden_size, self.dtype = int(hidden.shape[-1]), hidden.dtype
        for other in (*args[1:], *kwargs.values()):
            # What has the shape of the hidden states, or comes out of a block, would have to be sent along.
            if isinstance(other, torch.Tensor) and (
                other.shape == hidden.shape or any(other is made for made in self._made)
            ):
                raise CannotCut(self._model, f"{type(block).__name__} takes more than one stream of hidden states")

    def _leave(self, block: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._blocks_run += 1
        self._made = list(output) if isinstance(output, tuple) else [output]


def _outside(model: torch.nn.Module, path: str) -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules with weights of their own that are not in the blocks."""
    for name, module in model.named_modules():
        if not name.startswith(f"{path}.") and next(module.parameters(recurse=False), None) is not None:
            yield name, module


def _longest_row(model: torch.nn.Module) -> tuple[str, torch.nn.ModuleList]:
    rows = [
        (bytes_of(module), name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module)
    ]
    if not rows:
        raise CannotCut(model, "it has no list of blocks")
    _, name, row = max(rows, key=lambda one: one[0])
    return name, row


def _path_of(model: torch.nn.Module, wanted: object) -> str | None:
    return next((name for name, module in model.named_modules() if module is wanted), None)
