"""The store at which the ranks of a group meet, which torch.distributed asks who the others are."""

from __future__ import annotations

import select
import sys
from socket import socket
from threading import Event, Thread
from time import sleep
from typing import Any, NoReturn

# Between two looks whether the handler has imported torch.
LOOK_SECONDS = 0.02

_sleep = sleep


class MeetingPlace:
    """A socket that the daemon has opened for the store; the store is there from the first rank to the last breath.

    Ranks connect to it instead of opening their own because the daemon has set TORCHELASTIC_USE_AGENT_STORE
    (https://docs.pytorch.org/docs/stable/elastic/run.html). Who does without torch.distributed never imports it.
    """

    def __init__(self, listener: socket) -> None:
        self._listener = listener

    def open(self) -> None:
        """Waits for the first rank in a thread of its own; whoever comes meanwhile is kept waiting by the kernel."""
        Thread(target=self._serve, name="torchd-rendezvous", daemon=True).start()

    def _serve(self) -> None:
        host, port = self._listener.getsockname()
        fd = self._listener.detach()
        # Not select: the number is the daemon's, which may have more descriptors than that can count.
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll()
        make_store = _imported_torch().distributed.TCPStore
        store = make_store(host, port, is_master=True, wait_for_workers=False, master_listen_fd=fd)
        # It serves as long as somebody holds it, which is also while libraries leave their group at the end.
        _hold(store)


def _hold(store: object) -> NoReturn:
    while True:
        Event().wait()


def _imported_torch() -> Any:
    """Torch, once the handler of this rank has imported it, without which the ranks cannot meet anyway.

    It is not imported here: where another rank was faster, the main thread may be in the middle of the same import, and
    two threads that import torch at once break it for both. The import system tells nobody when it is done.
    """
    while (torch := sys.modules.get("torch")) is None or getattr(torch.__spec__, "_initializing", False):
        _sleep(LOOK_SECONDS)
    return torch
