"""The entry points: `torchd` and `torchserve`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from torchd_server import start


def main(argv: Sequence[str] | None = None) -> None:
    """`torchd`: `serve` is started with nothing imported that it does not need; every other command is typer's."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["serve"]:
        start.serve(words[1:])
    if words[:1] == ["torchserve"]:  # how `torchserve --start` starts itself in the background
        start.torchserve(words[1:])
    from torchd_server.commands import torchd  # typer and rich: imported where a person waits, not a daemon

    torchd()(words, prog_name="torchd")


def torchserve_main(argv: Sequence[str] | None = None) -> NoReturn:
    """`torchserve`."""
    start.torchserve(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
