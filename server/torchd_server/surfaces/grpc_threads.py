"""gRPC's own threads, and how they share a processor with the event loop that they bring work to."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

# The names that gRPC gives its threads, cut as the kernel cuts them, and the one that its asyncio side polls by.
_NAMES = ("event_engine", "lifeguard", "grpc_")
_POLLER = "_poll_wrapper"


def yield_to_the_loop() -> None:
    """From now on waking these threads does not interrupt the event loop: they find more to do, in fewer switches.

    Each call wakes them some five times. On a core that they share with the loop each time would be two switches; as
    SCHED_BATCH (sched(7)) they run when the loop has nothing to do or its turn is over. Threads that gRPC starts later
    inherit it. Call it once servers have started.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return
    pollers = {thread.native_id for thread in threading.enumerate() if _POLLER in thread.name}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or a sandbox forbids it
            if int(task.name) in pollers or (task / "comm").read_text().startswith(_NAMES):
                os.sched_setscheduler(int(task.name), os.SCHED_BATCH, os.sched_param(0))
