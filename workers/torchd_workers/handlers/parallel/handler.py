"""ParallelHandler: serves a Hugging Face model, larger than one device if need be, by model-config.yaml."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from torchd_workers.context import Context
from torchd_workers.handlers.optional_libraries import library
from torchd_workers.handlers.parallel.asked import asked_by
from torchd_workers.handlers.parallel.model_path import model_path
from torchd_workers.handlers.parallel.models import RunningModel, load_alike
from torchd_workers.handlers.parallel.ranks import join_ranks
from torchd_workers.handlers.parallel.staged_models import load_in_stages
from torchd_workers.handlers.parallel.tasks import TASKS, Task
from torchd_workers.handlers.rows import BadInput

logger = logging.getLogger(__name__)

LOADERS: dict[str, Callable[..., RunningModel]] = {"": load_alike, "tp": load_alike, "pp": load_in_stages}
_DTYPES = ("float32", "float16", "bfloat16", "auto")


class ParallelHandler:
    """Loads `handler.model_path` split by `parallelType` over this worker's ranks, and serves it for `handler.mode`."""

    def __init__(self) -> None:
        self._task: Task | None = None

    def initialize(self, context: Context) -> None:
        """Joins the ranks and loads this rank's part; raises what is wrong with model-config.yaml."""
        options: Mapping[str, Any] = context.model_yaml_config.get("handler") or {}
        kind = context.model_yaml_config.get("parallelType") or ""
        if kind not in LOADERS:
            known = ", ".join(sorted(filter(None, LOADERS)))
            raise ValueError(f"parallelType is {kind!r}; this handler splits models by {known}")
        task, auto = _task(options)
        dtype = _dtype(options)
        transformers = library("transformers", type(self).__name__, "'torchd[torch]'")
        folder = model_path(context)
        ranks = join_ranks(gpu=context.system_properties.get("gpu_id"))
        model = LOADERS[kind](folder, getattr(transformers, auto), dtype, ranks, context, options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._task = task(model, tokenizer, options)
        logger.info("rank %d of %d has its part of %s on %s", ranks.rank, ranks.size, folder, ranks.device)

    def handle(self, data: list[Any], context: Context) -> list[Any]:
        """An answer for each row; a row that cannot be answered gets its own error, and the others theirs."""
        if self._task is None:
            raise RuntimeError("the handler has not been initialized")
        prepared: dict[int, Any] = {}
        for row, one in enumerate(data):
            try:
                prepared[row] = self._task.prepare(asked_by(one))
            except BadInput as error:
                if len(data) == 1 or row >= len(context.running):
                    raise
                context.running[row].failure = error
        answers = dict.fromkeys(range(len(data)))
        if prepared:
            found = self._task.answer(list(prepared.values()), list(prepared), context)
            answers.update(zip(prepared, found, strict=True))
        return list(answers.values())


def _task(options: Mapping[str, Any]) -> tuple[type[Task], str]:
    mode = str(options.get("mode", "text-generation")).replace("_", "-")
    if mode not in TASKS:
        raise ValueError(f"handler.mode is {mode!r}; it may be {', '.join(TASKS)}")
    return TASKS[mode]


def _dtype(options: Mapping[str, Any]) -> torch.dtype | None:
    name = str(options.get("dtype", "auto")).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(f"handler.dtype is {name!r}; it may be {', '.join(_DTYPES)}")
    return None if name == "auto" else getattr(torch, name)
