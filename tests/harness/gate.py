"""A gate at which handlers wait until the test lets them through: order without sleeping."""

from __future__ import annotations

import socket
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE = 30.0


class Visitor:
    """One handler that stands at the gate. It runs on once it is let through."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(PATIENCE)
        name, pid = connection.makefile("rb").readline().decode().split()
        self.request, self.pid = name, int(pid)

    def let_through(self) -> None:
        """Lets the handler run on."""
        self._connection.close()

    def wait_gone(self) -> None:
        """Returns when the handler has left by itself, or has died."""
        self._connection.recv(1)
        self._connection.close()


class Gate:
    """A Unix socket whose address is put into requests of the zoo."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._waiting: list[Visitor] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.address)
        self._socket.listen(64)
        self._socket.settimeout(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for visitor in self._waiting:
            visitor.let_through()
        self._socket.close()
        Path(self.address).unlink(missing_ok=True)

    def wait_visitor(self) -> Visitor:
        """The next handler that comes to the gate; TimeoutError if none does."""
        visitor = Visitor(self._socket.accept()[0])
        self._waiting.append(visitor)
        return visitor
