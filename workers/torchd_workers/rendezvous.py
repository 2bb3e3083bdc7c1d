"""The store at which the ranks of a group meet, which torch.distributed asks who the others are."""

from __future__ import annotations

import importlib
import importlib.util
from socket import socket


def host_store(listener: socket) -> object | None:
    """Serves the store on the socket that the daemon has opened; it lives as long as what is returned.

    Imports torch, where there is one. Ranks connect to it because the daemon has set TORCHELASTIC_USE_AGENT_STORE
    (https://docs.pytorch.org/docs/stable/elastic/run.html): the store is not theirs to open.
    """
    if importlib.util.find_spec("torch") is None:
        return None
    host, port = listener.getsockname()
    distributed = importlib.import_module("torch.distributed")
    store: object = distributed.TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    return store
