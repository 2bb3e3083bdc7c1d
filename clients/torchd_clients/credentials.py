"""What a client shows the daemon, and by what it knows the daemon: tokens and certificates."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# The token of a service ("inference", "management", "health"), or None where none is to be sent.
TokenSource = Callable[[str], str | None]
Token = str | TokenSource


@dataclass(frozen=True, slots=True)
class Tls:
    """How to speak TLS, in PEM: the authority to believe (None: the system's), the name the daemon's certificate has
    where that is not its address, and a certificate of our own for a daemon that asks for one."""

    ca: bytes | None = None
    name: str = ""
    certificate: bytes | None = None
    key: bytes | None = None


class KeyFile:
    """The tokens of a daemon's key file, read again whenever it has changed: the daemon puts new ones there in time."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._seen: tuple[int, int] | None = None
        self._keys: dict[str, str] = {}

    def __call__(self, service: str) -> str | None:
        """The token of a service, or the API key by its name; None if the file is gone or is none."""
        try:
            found = os.stat(self._path)
            if (found.st_mtime_ns, found.st_ino) != self._seen:
                document = json.loads(self._path.read_text())
                self._keys = {name: str(document[name]["key"]) for name in ("inference", "management", "API")}
                self._seen = (found.st_mtime_ns, found.st_ino)
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return self._keys.get(service, self._keys["inference"])  # health takes any, and asks for none
