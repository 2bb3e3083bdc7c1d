"""A model as a pipeline of stages, one on each rank, run by torch.distributed.pipelining.

Requests come to the leader. It announces a step over the group's frames (group.py), with the inputs where every stage
needs them; the others run their stage in their own loop. Between stages go tensors of shapes that every rank works out
for itself: PipelineStage is given them, so it never asks its neighbours, which it would do with pickled objects. The
outputs come back from the last stage to the leader. A run is cancelled between two steps, by not starting another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Protocol

import torch
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from torchd_workers.context import Context
from torchd_workers.handlers.parallel.ranks import Ranks
from torchd_workers.handlers.parallel.stages import Stage, Tensors
from torchd_workers.handlers.parallel.tensor_packets import (
    bytes_of,
    empty_from,
    facts_of,
    receive_tensors,
    send_tensors,
    tensors_from,
)

STEP = "pipeline.step"
REORDER = "pipeline.reorder"
# A schedule holds the buffers of one shape; ranks keep and drop the same ones, for they see the same steps.
MOST_SCHEDULES = 32
# Generations whose caches the ranks hold at a time; the oldest gives way.
MOST_RUNS = 8


class Teller(Protocol):
    """What a pipeline needs of the worker's group (torchd_workers.group.Group)."""

    def serve(self, name: str, action: Any) -> None: ...
    def call(self, name: str, arguments: Mapping[str, Any] | None = None, body: Any = b"") -> None: ...


def chunks_of(context: Context) -> int:
    """How many microbatches a batch is cut into at most: `pippy.chunks` of model-config.yaml."""
    chunks = (context.model_yaml_config.get("pippy") or {}).get("chunks", 1)
    if isinstance(chunks, bool) or not isinstance(chunks, int) or chunks < 1:
        raise ValueError(f"pippy.chunks is {chunks!r}; it must be a number of microbatches, 1 or more")
    return chunks


class RunEnded(RuntimeError):
    """A generation goes on whose caches the ranks have let go of."""

    def __init__(self, run: int) -> None:
        super().__init__(f"generation {run} is over, or {MOST_RUNS} others began since its last step")


class Pipeline:
    """A model's stage on this rank, and on the leader the way to run all of them."""

    def __init__(self, stage: Stage, ranks: Ranks, group: Teller | None, chunks: int = 1) -> None:
        """`group` may be None where there is one rank only. `chunks`: the microbatches a batch is cut into, at most."""
        if group is None and ranks.size > 1:
            raise ValueError(f"a pipeline of {ranks.size} ranks needs the worker's group (context.group)")
        self.stage = stage
        self.ranks = ranks
        self._group = group
        self._chunks = chunks
        self._schedules: OrderedDict[tuple[Any, ...], _Schedule] = OrderedDict()
        self._runs: OrderedDict[int, list[Any]] = OrderedDict()
        self._numbers = count(1)
        self._newest = 0
        self._over: list[int] = []
        if group is not None and not ranks.is_leader:
            group.serve(STEP, self._follow)
            group.serve(REORDER, self._follow_reorder)

    def new_run(self) -> int:
        """Leader: the number of a generation whose steps share their caches."""
        return next(self._numbers)

    def step(
        self, inputs: Tensors, options: Mapping[str, Any] | None = None, run: int | None = None
    ) -> dict[str, torch.Tensor]:
        """Leader: the model's outputs for a batch. `options` are other arguments of its forward, such as JSON takes."""
        rows, chunks, padded = self._cut(inputs)
        options = dict(options or {})
        over = self._over[:]
        self._forget(over)
        work = _Work(_chunks_of(padded, chunks), options, self._caches(run, chunks))
        # Before anybody is told: most of what can be wrong with a request is found in the first stage.
        if self._key(work) not in self._schedules:
            self.stage.borders(work.inputs[0])
        work.ahead = self._first(work)
        if self._group is not None:
            arguments = {"facts": facts_of(padded), "chunks": chunks, "options": options, "run": run, "over": over}
            self._group.call(STEP, arguments, bytes_of(padded) if self.stage.wants_inputs else b"")
        del self._over[: len(over)]
        outputs = self._schedule(work).run(work)
        if self.ranks.size > 1:
            outputs = receive_tensors(self.ranks.size - 1, self.ranks.device)
        if work.error is not None:
            raise work.error
        return {name: value[:rows] if value.ndim and len(value) > rows else value for name, value in outputs.items()}

    def end_run(self, run: int) -> None:
        """Leader: a generation is over. The ranks let go of its caches when the next step begins."""
        self._over.append(run)

    def reorder(self, run: int, rows: torch.Tensor) -> None:
        """Leader: keeps these rows of a generation's batch, in this order, on every rank."""
        caches = self._known(run)
        self.stage.reorder(caches, rows)
        if self._group is not None:
            self._group.call(REORDER, {"run": run, "facts": facts_of({"rows": rows})}, bytes_of({"rows": rows}))

    def _follow(self, arguments: Mapping[str, Any], body: memoryview) -> None:
        facts, chunks, run = arguments["facts"], arguments["chunks"], arguments["run"]
        self._forget(arguments["over"])
        inputs = tensors_from(facts, body, self.ranks.device) if self.stage.wants_inputs else empty_from(facts)
        work = _Work(_chunks_of(inputs, chunks), arguments["options"], self._caches(run, chunks))
        outputs = self._schedule(work).run(work)
        if self.ranks.rank == self.ranks.size - 1:
            send_tensors(outputs, 0, self.ranks.device)

    def _follow_reorder(self, arguments: Mapping[str, Any], body: memoryview) -> None:
        rows = tensors_from(arguments["facts"], body, self.ranks.device)["rows"]
        self.stage.reorder(self._known(arguments["run"]), rows)

    def _cut(self, inputs: Tensors) -> tuple[int, int, dict[str, torch.Tensor]]:
        """How many rows and microbatches there are, and the inputs with rows enough for microbatches of one size."""
        rows = max((len(one) for one in inputs.values() if one.ndim), default=0)
        if rows == 0:
            raise ValueError(
                "a batch without rows has no answer; the inputs are tensors whose first dimension counts them"
            )
        chunks = min(self._chunks, rows)
        total = -(-rows // chunks) * chunks
        padded = {}
        for name, one in inputs.items():
            if one.ndim == 0 or len(one) not in (1, rows):
                raise ValueError(f"the input {name} has the shape {list(one.shape)}; others have {rows} rows")
            whole = one.expand(rows, *one.shape[1:]).to(self.ranks.device)
            padded[name] = (
                torch.cat([whole, whole[-1:].expand(total - rows, *whole.shape[1:])]) if total > rows else whole
            )
        return rows, chunks, padded

    def _caches(self, run: int | None, chunks: int) -> Sequence[Any]:
        if run is None:
            return [None] * chunks
        if run not in self._runs:
            if run <= self._newest:
                raise RunEnded(run)
            self._newest = run
            self._runs[run] = [self.stage.new_cache() for _ in range(chunks)]
            while len(self._runs) > MOST_RUNS:
                self._runs.popitem(last=False)
        self._runs.move_to_end(run)
        return self._runs[run]

    def _forget(self, runs: Sequence[int]) -> None:
        for run in runs:
            self._runs.pop(run, None)

    def _known(self, run: int) -> list[Any]:
        if run not in self._runs:
            raise RunEnded(run)
        return self._runs[run]

    def _key(self, work: _Work) -> tuple[Any, ...]:
        return (len(work.inputs), *self.stage.shape_key(work.inputs[0]))

    def _schedule(self, work: _Work) -> _Schedule:
        key = self._key(work)
        schedule = self._schedules.get(key)
        if schedule is None:
            schedule = self._schedules[key] = _Schedule(self.stage, self.ranks, work.inputs[0], len(work.inputs))
            while len(self._schedules) > MOST_SCHEDULES:
                self._schedules.popitem(last=False)
        self._schedules.move_to_end(key)
        return schedule

    def _first(self, work: _Work) -> Any:
        with torch.no_grad():
            return self.stage.run((), work.inputs[0], work.options, work.caches[0])


class _Work:
    """One step's inputs, microbatch by microbatch, and what became of it on this rank."""

    def __init__(
        self, inputs: Sequence[dict[str, torch.Tensor]], options: Mapping[str, Any], caches: Sequence[Any]
    ) -> None:
        self.inputs = inputs
        self.options = options
        self.caches = caches
        self.done = 0
        # What the leader's stage made of the first microbatch already.
        self.ahead: Any = None
        self.error: Exception | None = None


class _Schedule:
    """The library's stage and schedule for microbatches of one shape."""

    def __init__(self, stage: Stage, ranks: Ranks, inputs: dict[str, torch.Tensor], chunks: int) -> None:
        self._module = _StageModule(stage, ranks, stage.borders(inputs))
        self._ranks = ranks
        self._gpipe: Any = None
        if ranks.size > 1:
            arriving, leaving = self._module.borders
            piece = PipelineStage(
                self._module, ranks.rank, ranks.size, ranks.device, input_args=arriving, output_args=leaving
            )
            self._gpipe = ScheduleGPipe(piece, chunks)

    def run(self, work: _Work) -> dict[str, torch.Tensor]:
        """Runs this rank's stage on every microbatch; the last rank gets the outputs, the others nothing."""
        self._module.work = work
        try:
            with torch.no_grad():
                if self._gpipe is not None:
                    self._gpipe.step(return_outputs=False)
                else:
                    for _ in work.inputs:
                        self._module()
        finally:
            self._module.work = None
        made = self._module.take_outputs()
        if not made:
            return {}
        return {name: torch.cat([one[name] for one in made]) for name in made[0]}


class _StageModule(torch.nn.Module):
    """The stage as the library calls it: with what arrived, once for each microbatch in turn."""

    def __init__(
        self, stage: Stage, ranks: Ranks, borders: tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]
    ) -> None:
        super().__init__()
        self._stage = stage
        self._ranks = ranks
        self.borders = borders
        self.work: _Work | None = None
        self._outputs: list[dict[str, torch.Tensor]] = []

    def forward(self, *arriving: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What leaves the stage for the running microbatch."""
        work = self.work
        if work is None:
            raise RuntimeError("the library ran the stage outside a step")
        chunk = work.done
        work.done += 1
        made = self._made(work, chunk, arriving)
        if isinstance(made, dict):
            self._outputs.append(made)
            return ()
        return tuple(one.contiguous() for one in made)

    def take_outputs(self) -> list[dict[str, torch.Tensor]]:
        """The outputs of the microbatches since the last call."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def _made(self, work: _Work, chunk: int, arriving: tuple[torch.Tensor, ...]) -> Any:
        if chunk == 0 and work.ahead is not None:
            return work.ahead
        if not self._ranks.is_leader:
            return self._stage.run(arriving, work.inputs[chunk], work.options, work.caches[chunk])
        if work.error is None:
            try:
                return self._stage.run(arriving, work.inputs[chunk], work.options, work.caches[chunk])
            except Exception as error:
                if self._ranks.size == 1:
                    raise
                # The others wait for this microbatch. They get zeros, nobody gets what they make of them, and the
                # ranks stay in step.
                work.error = error
        return tuple(torch.zeros(one.shape, dtype=one.dtype, device=self._ranks.device) for one in self.borders[1])


def _chunks_of(inputs: Mapping[str, torch.Tensor], chunks: int) -> list[dict[str, torch.Tensor]]:
    parts = {name: one.chunk(chunks) for name, one in inputs.items()}
    return [{name: part[index] for name, part in parts.items()} for index in range(chunks)]
