"""Where the scripts send their requests: the model's name by config.json, the daemon over gRPC or REST, its token."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from torchd_clients.connection import DEFAULT_INFERENCE
from torchd_clients.credentials import Tls
from torchd_clients.run_directory import Daemon, find_daemon

REST = "http://127.0.0.1:8080"
REQUEST_SECONDS = 120.0

Parts = dict[str, bytes]


class Refused(RuntimeError):
    """The model has not answered a request."""


@dataclass(frozen=True, slots=True)
class Target:
    """A model of a daemon, `daemon` if it is this user's; `rest` is a URL, or "" for gRPC."""

    model: str
    batch_size: int
    grpc: str
    rest: str
    token: str
    daemon: Daemon | None

    @property
    def tls(self) -> Tls | None:
        """How gRPC is to be spoken."""
        return self.daemon.tls if self.daemon is not None else None

    def shown(self, service: str) -> str | None:
        """The token that a request shows."""
        tokens = self.daemon.token if self.daemon is not None else None
        return self.token or (tokens(service) if tokens is not None else None)


class RestConnection:
    """One persistent connection to the model's prediction URL; the sentences go as a form, as a browser sends one."""

    def __init__(self, target: Target) -> None:
        """Holds the connection, which is opened by the first request."""
        url = urlsplit(target.rest)
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(url.netloc, timeout=REQUEST_SECONDS)
        # A whole prediction URL is taken as it is.
        self._path = url.path if "/predictions/" in url.path else f"/predictions/{quote(target.model)}"
        self._headers = {"Content-Type": "application/x-www-form-urlencoded"}
        token = target.shown("inference")
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def send(self, parts: Parts) -> None:
        """Sends one request; its answer is read later."""
        self._connection.request("POST", self._path, urlencode(parts), self._headers)

    def receive(self) -> bytes:
        """The answer to the request that was sent; raises Refused."""
        reply = self._connection.getresponse()
        body = reply.read()
        if reply.status != http.client.OK:
            raise Refused(f"REST answered {reply.status}: {body.decode(errors='replace')}")
        return body

    def hang_up(self) -> None:
        """Ends it while another thread may wait for an answer, which then fails."""
        if self._connection.sock is not None:
            with contextlib.suppress(OSError):  # the other end was quicker
                self._connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say where the model is."""
    add = parser.add_argument
    add("--config", type=Path, default=Path("config.json"), metavar="FILE", help="batch_size, max_length (%(default)s)")
    add("--model", metavar="NAME", help="name of the model (bert-max_lengthL-batch_sizeB, by the file)")
    add("--grpc", metavar="HOST:PORT", help=f"where gRPC listens (the daemon you run, else {DEFAULT_INFERENCE})")
    add("--rest", nargs="?", const=REST, default="", metavar="URL", help=f"send over REST instead, to URL ({REST})")
    add("--token", default=os.environ.get("TORCHD_TOKEN", ""), help="token to show (the one in the daemon's key file)")


def target_of(options: argparse.Namespace) -> Target:
    """The model that the options, and config.json, say; without the file, the tutorial's."""
    config = json.loads(options.config.read_text()) if options.config.is_file() else {}
    batch_size, max_length = config.get("batch_size", 6), config.get("max_length", 128)
    model = options.model or f"bert-max_length{max_length}-batch_size{batch_size}"
    daemon = find_daemon(os.environ, [options.grpc] if options.grpc else [])
    grpc = options.grpc or (daemon.grpc_inference if daemon is not None else DEFAULT_INFERENCE)
    return Target(model, batch_size, grpc, options.rest, options.token, daemon)


def parts_of(seq_0: str, seq_1: str) -> Parts:
    """A pair of sentences as the parts of a request."""
    return {"seq_0": seq_0.encode(), "seq_1": seq_1.encode()}
