"""Starting and stopping a server from Python: what `ts.launcher` has. It drives the command `torchserve`."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Full, Queue
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

READY_LINE = "Model server started"
MANAGEMENT = "http://127.0.0.1:8081"
LINES_KEPT = 1000
REGISTER_SECONDS = 600.0

Params = Mapping[str, Any] | Iterable[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class Response:
    """The server's answer, with the names that the library requests gives them."""

    status_code: int
    content: bytes
    headers: Mapping[str, str]

    @property
    def text(self) -> str:
        """The body as text."""
        return self.content.decode(errors="replace")

    @property
    def ok(self) -> bool:
        """Whether the server did it."""
        return self.status_code < 400

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.content)


def start(
    model_store: str | None = None,
    snapshot_file: str | None = None,
    no_config_snapshots: bool = False,
    plugin_folder: str | None = None,
    disable_token: bool = False,
    models: str | None = None,
    enable_model_api: bool = False,
) -> Queue[str | None]:
    """Stops the server that runs, starts one, returns once it is ready: a queue of the lines it says from then on.

    None ends the queue. Where nobody takes the lines, those over LINES_KEPT are lost.
    """
    stop()
    options = {"--model-store": model_store, "--plugins-path": plugin_folder, "--ts-config": snapshot_file}
    flags = {
        "--no-config-snapshots": no_config_snapshots,
        "--disable-token-auth": disable_token,
        "--enable-model-api": enable_model_api,
    }
    command = ["torchserve", "--start", "--foreground"]
    command += [word for name, value in options.items() if value for word in (name, str(value))]
    command += [name for name, is_set in flags.items() if is_set]
    command += ["--models", *models.split()] if models else []
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    output = process.stdout
    if output is None:
        raise RuntimeError("the server's output cannot be read")
    for line in output:
        print(line.rstrip())
        if READY_LINE in line:
            lines: Queue[str | None] = Queue(LINES_KEPT)
            threading.Thread(target=_tee, args=(process, output, lines), name="torchserve output", daemon=True).start()
            return lines
    raise RuntimeError(f"the server left with {process.wait()} before it was ready; its output is above")


def stop(wait: bool = True) -> None:
    """Stops the server; with `wait`, returns once it is gone."""
    subprocess.run(["torchserve", "--stop", *(["--foreground"] if wait else [])], check=False)


def register_model_with_params(params: Params) -> Response:
    """Registers a model with the parameters of POST /models."""
    url = f"{MANAGEMENT}/models?{urlencode(list(params.items()) if isinstance(params, Mapping) else list(params))}"
    opener = build_opener(ProxyHandler({}))  # the server is on this machine, whatever proxy the environment names
    try:
        with opener.open(Request(url, method="POST"), timeout=REGISTER_SECONDS) as answer:
            return Response(answer.status, answer.read(), dict(answer.headers))
    except HTTPError as error:
        with error:
            return Response(error.code, error.read(), dict(error.headers))


def register_model(model_name: str, url: str) -> Response:
    """Registers a model with one worker and returns once it is there."""
    return register_model_with_params(
        {"model_name": model_name, "url": url, "initial_workers": "1", "synchronous": "true"}
    )


def _tee(process: subprocess.Popen[str], output: IO[str], lines: Queue[str | None]) -> None:
    with output:
        for line in output:
            print(line.rstrip())
            with suppress(Full):
                lines.put_nowait(line)
    process.wait()
    while lines.full():
        lines.get_nowait()
    lines.put_nowait(None)
