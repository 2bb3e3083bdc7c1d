"""Programs that are to be ended by Ctrl-C."""

from __future__ import annotations

import signal


def heard() -> None:
    """For `preexec_fn`: the program hears SIGINT, also where the tests run in the background and ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
