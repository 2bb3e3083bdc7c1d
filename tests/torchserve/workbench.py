"""The folder in which a scenario's server works, the same for both sides: store, archives, ports, variables."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from harness.certificates import Authority
from torchserve import archives
from torchserve.scenarios import Setup

# Archives named so lie where only the file server has them, not in the model store.
_REMOTE = "remote:"
PORT_NAMES = ("inference", "management", "metrics", "grpc_inference", "grpc_management")


def prepare(folder: Path, setup: Setup, packer: archives.Packer, shelf: Path) -> None:
    """Makes the folder; archives are packed once into `shelf` and linked from there."""
    for name in ("model_store", "workflow_store", "files", "logs", "tmp"):
        (folder / name).mkdir(parents=True)
    shelf.mkdir(parents=True, exist_ok=True)
    places = [
        (name.removeprefix(_REMOTE), "files" if name.startswith(_REMOTE) else "model_store") for name in setup.archives
    ]
    places += [(name, "workflow_store") for name in setup.workflows]
    for name, place in places:
        made = archives.make(name, shelf, packer)
        # A symbolic link would be followed out of the store, which some servers refuse.
        _copy(made, folder / place / name)
    if setup.tls:
        authority(folder).parent.mkdir()
        Authority(authority(folder).parent, "authority").pair("server")


def authority(folder: Path) -> Path:
    """The certificate of who signs in a scenario with TLS."""
    return folder / "tls" / "authority.pem"


def variables(folder: Path, setup: Setup) -> dict[str, str]:
    """What the server's environment says beyond the user's own."""
    return {
        "LOG_LOCATION": str(folder / "logs"),
        "METRICS_LOCATION": str(folder / "logs"),
        "TMPDIR": str(folder / "tmp"),
        "TEMP": str(folder / "tmp"),
        **setup.environment,
    }


def config(setup: Setup, ports: Sequence[int], folder: Path) -> list[str]:
    """The scenario's lines of config.properties, with ports and folders put in."""
    words = {f"{{{{port:{name}}}}}": str(port) for name, port in zip(PORT_NAMES, ports, strict=True)}
    words |= {"{{folder}}": str(folder), "{{store}}": str(folder / "model_store"), "{{models}}": str(archives.MODELS)}
    lines = [*setup.config, f"workflow_store={folder / 'workflow_store'}"]
    return [_replaced(line, words) for line in lines]


@contextmanager
def file_server(folder: Path) -> Iterator[str]:
    """Serves a folder over http on a free port; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, name="file server")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing."""


def _replaced(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _copy(source: Path, target: Path) -> None:
    if not source.is_dir():
        target.write_bytes(source.read_bytes())
        return
    for path in sorted(source.rglob("*")):
        if path.is_file():
            copied = target / path.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_bytes(path.read_bytes())
