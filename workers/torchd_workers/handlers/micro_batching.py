"""MicroBatching: the parts of a batch go through the steps of a handler side by side, each step with its threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from torchd_workers.handlers.profiling import is_profiler_enabled

STEPS = ("preprocess", "inference", "postprocess")


@dataclass(frozen=True, slots=True)
class _Done:
    """What became of one part of a batch."""

    index: int
    answers: Any = None
    error: BaseException | None = None


class MicroBatching:
    """A handler's `handle`: `self.handle = MicroBatching(self, micro_batch_size=4, parallelism={"inference": 2})`."""

    def __init__(
        self, parent_handler: Any, micro_batch_size: int = 1, parallelism: Mapping[str, int] | None = None
    ) -> None:
        self.handler = parent_handler
        self.micro_batch_size = micro_batch_size
        self._parallelism: dict[str, int] = {}
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._here = threading.local()
        self.parallelism = dict.fromkeys(STEPS, 1) | dict(parallelism or {})

    @property
    def parallelism(self) -> dict[str, int]:
        """The number of threads of each step."""
        return dict(self._parallelism)

    @parallelism.setter
    def parallelism(self, parallelism: Mapping[str, int]) -> None:
        for step, threads in parallelism.items():
            if step not in STEPS:
                raise ValueError(f"micro batching knows no step {step!r}; it knows {', '.join(STEPS)}")
            if threads < 1:
                raise ValueError(f"{step} cannot run with {threads} threads; it takes 1 or more")
        for step, threads in parallelism.items():
            if self._parallelism.get(step) != threads:
                self._replace_pool(step, threads)

    def shutdown(self) -> None:
        """Ends the threads; what runs, finishes."""
        for pool in self._pools.values():
            pool.shutdown()

    def get_micro_batch_idx(self) -> int | None:
        """Which part of the batch the calling thread works on."""
        found: int | None = getattr(self._here, "index", None)
        return found

    def handle(self, data: Any) -> list[Any]:
        """The answers to one batch; raises what the first part that failed has raised."""
        parts = [data[at : at + self.micro_batch_size] for at in range(0, len(data), self.micro_batch_size)]
        done: SimpleQueue[_Done] = SimpleQueue()
        for index, part in enumerate(parts):
            self._pools[STEPS[0]].submit(self._run, 0, index, part, done)
        # Each part reports once, whatever its steps do, so this ends.
        ended = sorted((done.get() for _ in parts), key=lambda part: part.index)
        for part in ended:
            if part.error is not None:
                raise part.error
        return [answer for part in ended for answer in part.answers]

    def __call__(self, data: Any, context: Any) -> Any:
        """Answers one batch as BaseHandler.handle does, predictions in parts."""
        started = time.perf_counter()
        handler = self.handler
        handler.context = context
        if is_profiler_enabled():
            output, _ = handler._infer_with_profiler(data=data)
        elif handler._is_describe():
            output = [handler.describe_handle() for _ in data]
        elif handler._is_explain():
            output = handler.explain_handle(handler.preprocess(data), data)
        else:
            output = self.handle(data)
        milliseconds = round((time.perf_counter() - started) * 1000, 2)
        if context.metrics is not None:
            context.metrics.add_time("HandlerTime", milliseconds, None, "ms")
        return output

    def _run(self, step: int, index: int, part: Any, done: SimpleQueue[_Done]) -> None:
        self._here.index = index
        try:
            result = getattr(self.handler, STEPS[step])(part)
            if step + 1 < len(STEPS):
                self._pools[STEPS[step + 1]].submit(self._run, step + 1, index, result, done)
            else:
                done.put(_Done(index, list(result)))
        except BaseException as error:  # the thread that waits raises it; SystemExit too
            done.put(_Done(index, error=error))

    def _replace_pool(self, step: str, threads: int) -> None:
        before = self._pools.get(step)
        self._pools[step] = ThreadPoolExecutor(threads, thread_name_prefix=step)
        self._parallelism[step] = threads
        if before is not None:
            before.shutdown()
