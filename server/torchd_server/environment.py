"""What of the daemon's environment the processes it starts may see."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torchd_server import service_manager

# The operator's own way in to a daemon, which handlers must not have (E16), and words between it and who started it.
_NOBODYS = service_manager.VARIABLES | {"TORCHD_TOKEN"}


def passed_on(environment: Mapping[str, str], allowed: str | None, hidden: str = "") -> dict[str, str]:
    """`allowed` and `hidden` are expressions that the names of variables match in full; None allows all."""
    allow, hide = re.compile(".*" if allowed is None else allowed), re.compile(hidden)
    return {
        name: value
        for name, value in environment.items()
        if name not in _NOBODYS and allow.fullmatch(name) and not (hidden and hide.fullmatch(name))
    }
