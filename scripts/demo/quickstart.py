"""The Python half of scripts/quickstart: pack, serve, ask, measure with one and with two workers, stop."""

from __future__ import annotations

import argparse
import http.client
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console

from demo.daemon import Daemon, DaemonFailed
from demo.paraphrase.pack import MODEL_NAME, ModelMissing, pack
from demo.paraphrase.pairs import AnswerWrong, Pair, demo_pairs, read_answer
from demo.rest_client import REQUEST_SECONDS, RestClient
from demo.scaling import TUTORIAL_RATIO, Connect, ThreadsWrong, measure
from torchd_clients import Client, KeyFile, TorchdError
from torchd_server.settings import API_NAMES, Address, ServerSettings

FAILURES = (AnswerWrong, DaemonFailed, ModelMissing, ThreadsWrong, TorchdError, OSError, http.client.HTTPException)


def main() -> int:
    """Runs the whole demonstration; the exit code is 0 only if every answer was right and the daemon ended cleanly."""
    parser = argparse.ArgumentParser(prog="quickstart", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of the table's fastest cell (%(default)s)")
    parser.add_argument("--workspace", type=Path, default=Path("build/quickstart"), help="store and log (%(default)s)")
    arguments = parser.parse_args()
    # Ends like an exception would: the daemon is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(highlight=False)
    try:
        run(console, arguments.workspace, arguments.seconds)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except FAILURES as error:
        console.print(f"quickstart failed: {error}", style="bold red", markup=False)
        return 1
    return 0


def run(console: Console, workspace: Path, seconds: float) -> None:
    """The demonstration from the archive to the table, in order."""
    started = time.monotonic()
    store = workspace / "model_store"
    store.mkdir(parents=True, exist_ok=True)
    with _step(console, "Packing the model, its threshold chosen on 20 pairs"):
        pack(store)
    # One compute thread per worker, as in the tutorial's container: with more, one worker would use every core already.
    command = ["--model-store", str(store), "--worker-threads", "1", *_port_options()]
    with Daemon(command, run_dir=workspace / "run", log=workspace / "torchd.log") as daemon:
        with _step(console, "Starting torchd serve"):
            addresses = daemon.wait_ready()
        console.print(f"  gRPC {addresses.grpc_inference}, management {addresses.grpc_management}")
        console.print(f"  REST {addresses.inference}, management {addresses.management}")
        tokens = KeyFile(addresses.key_file)
        connect = partial(RestClient, addresses.inference, tokens)
        with Client(addresses.grpc_inference, addresses.grpc_management, token=tokens) as client:
            with _step(console, "Registering the model with one worker"):
                client.register(f"{MODEL_NAME}.mar", initial_workers=1)
            console.print("Six pairs of sentences over gRPC:")
            _ask_all(console, lambda pair: _ask_grpc(client, pair))
            console.print("The same over REST:")
            _ask_all(console, lambda pair: _ask_rest(connect, pair))
            console.print("Longer pairs over REST, with one worker and with two:")
            scaling = measure(console, client, connect, seconds)
        with _step(console, "Stopping the daemon"):
            daemon.stop()
    console.print(scaling.table())
    console.print(f"Two workers take {scaling.ratio:.2f} of the time of one (TorchServe's tutorial: {TUTORIAL_RATIO}).")
    console.print(f"Done in {time.monotonic() - started:.0f} s. To go on:")
    console.print(f"  {Path(sys.prefix) / 'bin' / 'torchd'} serve --model-store {store}", soft_wrap=True)


@contextmanager
def _step(console: Console, what: str) -> Iterator[None]:
    started = time.monotonic()
    with console.status(f"{what} ..."):
        yield
    console.print(f"{what}: {time.monotonic() - started:.1f} s")


def _port_options() -> list[str]:
    """The default ports where they are free, any free port in place of one that is taken."""
    listeners = ServerSettings().listeners
    taken = [name for name in API_NAMES if not _is_free(getattr(listeners, name))]
    return [word for name in taken for word in (f"--{name.replace('_', '-')}-port", "0")]


def _is_free(address: Address) -> bool:
    try:
        socket.create_server((address.host, address.port)).close()
    except OSError:
        return False
    return True


def _ask_all(console: Console, ask: Callable[[Pair], list[str]]) -> None:
    """Sends the six demonstration pairs from six threads and prints each answer as it comes."""
    pairs = demo_pairs()
    wrong = []
    with ThreadPoolExecutor(len(pairs)) as threads:
        answers = {threads.submit(ask, pair): number for number, pair in enumerate(pairs)}
        for future in as_completed(answers):
            number, answer = answers[future], future.result()
            console.print(f"{number} {answer}", markup=False)
            if answer != pairs[number].answer:
                wrong.append(f"{number} should be {pairs[number].answer}, not {answer}")
    if wrong:
        raise AnswerWrong("; ".join(wrong))


def _ask_grpc(client: Client, pair: Pair) -> list[str]:
    return read_answer(client.predict(MODEL_NAME, pair.body(), timeout=REQUEST_SECONDS))


def _ask_rest(connect: Connect, pair: Pair) -> list[str]:
    with closing(connect()) as rest:
        return rest.ask(pair)


if __name__ == "__main__":
    sys.exit(main())
