"""The bodies a search asks with: files, folders of files, or one JSON document a line."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from pathlib import Path

from torchd_clients.bench.target import Input
from torchd_clients.tune.errors import TuneFailed

_LINES = (".jsonl", ".ndjson")
_JSON = "application/json"
# gRPC requests have no content type: handlers look for the key that TorchServe's clients use.
_PART = "data"


def read_inputs(paths: Sequence[Path]) -> tuple[Input, ...]:
    """Every body, in the order given; raises TuneFailed for a path that has none."""
    found: list[Input] = []
    for path in paths:
        files = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
        bodies = [body for file in files for body in _bodies(file)]
        if not bodies:
            raise TuneFailed(f"--input {path} holds no request; give a file, a folder of files, or JSON lines")
        found += bodies
    return tuple(found)


def _bodies(file: Path) -> list[Input]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise TuneFailed(f"--input {file} cannot be read: {error.strerror}") from error
    if file.suffix in _LINES:
        return [Input(line, _JSON, _PART) for line in content.splitlines() if line.strip()]
    return [Input(content, mimetypes.guess_type(file.name)[0] or "application/octet-stream", _PART)]
