"""ts_metrics.log and model_metrics.log: one line for each value, as TorchServe writes and scripts read them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache

from torchd_server.torchserve.metrics_config import HOSTNAME, MetricSpec
from torchd_server.torchserve.metrics_text import number

SERVER_STREAM = "TS_METRICS"
HANDLER_STREAM = "MODEL_METRICS"
# (name of the log, name of the thread, text or what makes it): called in the event loop, must not block.
Write = Callable[[str, str, Callable[[], str]], None]
# A value that holds one of these would end its field; a line end would begin a forged line.
_SEPARATORS = str.maketrans({"|": "_", ",": "_", "#": "_"})


class MetricsLog:
    """Writes values as lines; the text is made by the thread that writes it."""

    def __init__(self, write: Write, hostname: str, now: Callable[[], float] = time.time) -> None:
        self._write = write
        self._hostname = hostname
        self._now = now

    def of_server(self, spec: MetricSpec, labels: tuple[str, ...], value: float) -> None:
        """One value of the server's own."""
        moment = self._now()
        self._write(SERVER_STREAM, "torchd", lambda: f"{_value(spec, labels, value)}{self._tail(moment)}")

    def of_handler(self, spec: MetricSpec, labels: tuple[str, ...], value: float, thread: str, request_id: str) -> None:
        """One value of a handler; without a request the id is "null", as TorchServe writes it."""
        moment = self._now()
        named = f"requestID:{request_id or 'null'},"
        self._write(HANDLER_STREAM, thread, lambda: f"{_value(spec, labels, value)}{self._tail(moment, named)}")

    def _tail(self, moment: float, named: str = "") -> str:
        return f"|#hostname:{self._hostname},{named}timestamp:{int(moment)}"


def _value(spec: MetricSpec, labels: tuple[str, ...], value: float) -> str:
    shown = number(value) if math.isfinite(value) else number(value).replace("Inf", "Infinity").lstrip("+")
    return f"{spec.name}.{spec.unit}:{shown}|#{_dimensions(spec.dimensions, labels)}"


@lru_cache(maxsize=1024)
def _dimensions(names: tuple[str, ...], labels: tuple[str, ...]) -> str:
    pairs = zip(names, labels, strict=True)
    return ",".join(
        f"{name}:{label.translate(_SEPARATORS)}" for name, label in pairs if name.lower() != HOSTNAME.lower()
    )
