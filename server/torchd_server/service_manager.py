"""Tells the service manager what the daemon does: systemd's sd_notify protocol, one datagram a state.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping

logger = logging.getLogger(__name__)

READY = "READY=1"
STOPPING = "STOPPING=1"
# Variables by which a service manager speaks to the daemon, and to nobody it starts.
VARIABLES = frozenset({"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"})


def notify(environment: Mapping[str, str], state: str) -> None:
    """Sends `state` to the socket that $NOTIFY_SOCKET names; does nothing where there is none."""
    path = environment.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
            datagrams.setblocking(False)
            datagrams.sendto(state.encode(), address)
    except OSError as error:  # the manager's own trouble must not stop what it manages
        logger.warning("the service manager at %s was not told %s: %s", path, state, error)
