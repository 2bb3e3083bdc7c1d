"""The store at which the ranks of a group meet, which torch.distributed asks who the others are."""

from __future__ import annotations

import importlib
import select
from socket import socket
from threading import Thread


class MeetingPlace:
    """A socket that the daemon has opened for the store; the store is there once somebody comes, as long as this is.

    Ranks connect to it instead of opening their own because the daemon has set TORCHELASTIC_USE_AGENT_STORE
    (https://docs.pytorch.org/docs/stable/elastic/run.html). Who does without torch.distributed never imports it.
    """

    def __init__(self, listener: socket) -> None:
        self._listener = listener
        self._store: object = None

    def open(self) -> None:
        """Waits for the first rank in a thread of its own; whoever comes meanwhile is kept waiting by the kernel."""
        Thread(target=self._serve, name="torchd-rendezvous", daemon=True).start()

    def _serve(self) -> None:
        host, port = self._listener.getsockname()
        fd = self._listener.detach()
        select.select([fd], [], [])
        distributed = importlib.import_module("torch.distributed")
        self._store = distributed.TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=fd)
