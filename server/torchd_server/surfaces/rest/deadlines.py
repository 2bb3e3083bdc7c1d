"""The deadline a REST client gives, in the header `Request-Timeout` or gRPC's own."""

from __future__ import annotations

import re

from torchd_server import errors
from torchd_server.surfaces.rest.http1_reader import RequestHead

_GRPC_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_GRPC_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
MOST_SECONDS = 365 * 86_400.0


def timeout_ms(head: RequestHead) -> int:
    """The client's deadline: `Request-Timeout` in seconds or `grpc-timeout`; 0 without one. A bad one is BadRequest."""
    seconds = head.header("request-timeout")
    if seconds is not None:
        return _milliseconds("Request-Timeout", seconds, _seconds(seconds))
    text = head.header("grpc-timeout")
    if text is None:
        return 0
    match = _GRPC_TIMEOUT.fullmatch(text)
    return _milliseconds("grpc-timeout", text, int(match[1]) * _GRPC_UNITS[match[2]] if match else None)


def _seconds(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,18}(\.\d{1,9})?", text, re.ASCII) else None


def _milliseconds(name: str, text: str, seconds: float | None) -> int:
    if seconds is None or seconds <= 0:
        example = "30 or 0.5" if name == "Request-Timeout" else "500m or 30S"
        raise errors.BadRequest(f"header {name}: {text[:100]!r} is no time above zero; write it as in {example}")
    return max(1, int(min(seconds, MOST_SECONDS) * 1000))
