"""Sends recorded requests to one server and keeps what came back, and how long it took."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urlsplit

from torchd_clients.compare.recorded import RecordedRequest

BODY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What one server said. `broken` is how the exchange failed where there is no whole answer; `status` 0 then."""

    seconds: float
    status: int = 0
    reason: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    broken: str = ""


class Server:
    """One of the two servers: a base URL for each of its ports, and the words that only it has."""

    def __init__(
        self,
        name: str,
        urls: Mapping[str, str],
        token: str | None,
        timeout_seconds: float,
        words: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._urls = urls
        self._token = token
        self._timeout = timeout_seconds
        self._words = words or {}

    def answer(self, request: RecordedRequest) -> Answer:
        """Its answer, with its words' names for their values.

        Each on a connection of its own, so that one answer cannot touch the next.
        """
        filled = request.filled(self._words)
        started = time.perf_counter()
        try:
            status, reason, headers, body, broken = self._exchange(filled)
        except TimeoutError:
            return Answer(time.perf_counter() - started, broken=f"no answer within {self._timeout:g} s")
        except (HTTPException, OSError) as error:
            return Answer(time.perf_counter() - started, broken=f"{type(error).__name__}: {error}")
        seconds = time.perf_counter() - started
        return Answer(seconds, status, reason, *self._named(headers, body), broken)

    def _named(self, headers: dict[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
        for name, value in self._words.items():
            headers = {header: text.replace(value, f"{{{{{name}}}}}") for header, text in headers.items()}
            body = body.replace(value.encode(), f"{{{{{name}}}}}".encode())
        return headers, body

    def _exchange(self, request: RecordedRequest) -> tuple[int, str, dict[str, str], bytes, str]:
        parts = urlsplit(self._urls[request.port])
        connection = _connection(parts.scheme, parts.hostname or "127.0.0.1", parts.port, self._timeout)
        try:
            connection.connect()
            if request.raw:
                connection.sock.sendall(request.raw)
                response = HTTPResponse(connection.sock)
                response.begin()
            else:
                self._send(connection, request, parts.path.rstrip("/"))
                response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            try:
                return response.status, response.reason, headers, response.read(BODY_BYTES), ""
            except HTTPException as error:  # the head was whole, the body is not
                return response.status, response.reason, headers, b"", type(error).__name__
        finally:
            connection.close()

    def _send(self, connection: HTTPConnection, request: RecordedRequest, prefix: str) -> None:
        named = {name.lower() for name, _ in request.headers}
        connection.putrequest(request.method, prefix + request.path, skip_accept_encoding=True)
        for name, value in request.headers:
            connection.putheader(name, value)
        if self._token is not None and "authorization" not in named:
            connection.putheader("Authorization", f"Bearer {self._token}")
        if request.body is not None and "content-length" not in named:
            connection.putheader("Content-Length", str(len(request.body)))
        connection.endheaders(request.body)


def _connection(scheme: str, host: str, port: int | None, timeout: float) -> HTTPConnection:
    if scheme == "https":
        # Two servers of the same operator are compared; a self-signed certificate is no difference.
        return HTTPSConnection(host, port, timeout=timeout, context=ssl._create_unverified_context())
    return HTTPConnection(host, port, timeout=timeout)


def can_connect(url: str, timeout_seconds: float) -> str:
    """Why nobody answers at this URL; empty if somebody does."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=timeout_seconds).close()
    except OSError as error:
        return f"{url}: {error.strerror or error}"
    return ""
