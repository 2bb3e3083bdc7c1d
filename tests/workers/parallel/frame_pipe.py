"""The leader's word to its followers, for programs of several ranks without a daemon: the interface of group.Group."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Action = Callable[[dict[str, Any], memoryview], object]


class FramePipe:
    """`serve` and `call` over Unix sockets in a folder that all ranks know."""

    def __init__(self, folder: Path) -> None:
        self.rank = int(os.environ["RANK"])
        self.size = int(os.environ["WORLD_SIZE"])
        self._actions: dict[str, Action] = {}
        self.called: list[str] = []
        if self.rank == 0:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"{folder}/new")
                listener.listen(self.size)
                (folder / "new").rename(folder / "leader")
                self._peers = [listener.accept()[0] for _ in range(1, self.size)]
        else:
            self._leader = socket.socket(socket.AF_UNIX)
            while True:
                try:
                    self._leader.connect(f"{folder}/leader")
                    break
                except FileNotFoundError:
                    continue
            self._stream = self._leader.makefile("rb")

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    def serve(self, name: str, action: Action) -> None:
        self._actions[name] = action

    def call(self, name: str, arguments: Mapping[str, Any] | None = None, body: bytes = b"") -> None:
        self.called.append(name)
        head = json.dumps([name, dict(arguments or {})]).encode()
        for peer in self._peers:
            peer.sendall(struct.pack("!II", len(head), len(body)) + head + body)

    def follow(self, until: str = "") -> None:
        """A follower's loop, until the leader calls `until` or is gone."""
        while sizes := self._stream.read(8):
            head, body = struct.unpack("!II", sizes)
            name, arguments = json.loads(self._stream.read(head))
            content = memoryview(self._stream.read(body))
            if name == until:
                return
            self._actions[name](arguments, content)

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
