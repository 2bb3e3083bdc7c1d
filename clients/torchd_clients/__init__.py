"""Clients of a torchd daemon: `Client` blocks, `AsyncClient` awaits, every failure is a `TorchdError`.

gRPC is imported when one of the names is first used: importing this package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchd_clients.aio import AsyncClient
    from torchd_clients.client import Client
    from torchd_clients.credentials import KeyFile, Tls
    from torchd_clients.errors import TorchdError

__all__ = ["AsyncClient", "Client", "KeyFile", "Tls", "TorchdError"]

_HOMES = {
    "AsyncClient": "aio",
    "Client": "client",
    "KeyFile": "credentials",
    "Tls": "credentials",
    "TorchdError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # the next look-up finds it without this function
    return value
