"""The `timed` decorator: a metric for one step of a handler, if model-config.yaml says `handler: {profile: true}`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from time import perf_counter
from typing import Any


def timed(func: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a handler's method so that its time leaves as the metric `ts_handler_<name>`."""

    @wraps(func)
    def measured(self: Any, *args: Any, **kwargs: Any) -> Any:
        started = perf_counter()
        result = func(self, *args, **kwargs)
        context = getattr(self, "context", None)
        if context is not None and (context.model_yaml_config.get("handler") or {}).get("profile"):
            _wait_for_gpu()
            milliseconds = round((perf_counter() - started) * 1000, 2)
            context.metrics.add_time(f"ts_handler_{func.__name__}", milliseconds, None, "ms")
        return result

    return measured


def _wait_for_gpu() -> None:
    """A GPU works on after the call that gave it work has returned."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
