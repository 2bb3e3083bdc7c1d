"""In front of a port's routes: what browsers are told (CORS), and whom a browser may be sent by (Host, Origin)."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from urllib.parse import urlsplit

from torchd_server.settings import Cors
from torchd_server.surfaces.rest.answers import JSON, answer, refusal
from torchd_server.surfaces.rest.http1 import Answer, Handle, HttpResponse, Refuse
from torchd_server.surfaces.rest.http1_reader import HttpRequest, RequestHead
from torchd_server.torchserve import words

ONLY_HTTPS = "This TorchServe instance only accepts HTTPS requests"


class Gate:
    """Stands in front of a port's handle; `headers` are what browsers are told with every answer of the port.

    `checks_origin` refuses what another site makes a browser send; `checks_host` also what comes under a foreign name,
    which is how a site reaches this machine's loopback through a name of its own (S27).
    """

    def __init__(self, handle: Handle, cors: Cors, *, checks_host: bool = False, checks_origin: bool = False) -> None:
        self._inner = handle
        self._origin = cors.origin
        self._checks_host = checks_host
        self._checks_origin = checks_origin
        named = (
            ("access-control-allow-origin", cors.origin),
            ("access-control-allow-methods", cors.methods),
            ("access-control-allow-headers", cors.headers),
        )
        self.headers = tuple((name, value) for name, value in named if value)

    @property
    def handle(self) -> Handle:
        """The guarded handle; the routes' own where nothing is to be done."""
        return self._handle if self._origin or self._checks_host or self._checks_origin else self._inner

    @property
    def refuse(self) -> Refuse:
        """What the HTTP server refuses with."""
        return refusal

    def _handle(self, request: HttpRequest) -> Answer:
        head = request.head
        if self not in head.notes:  # a head that has come in once comes in always
            stopped = self._stopped(head)
            if stopped is not None:
                return stopped
            head.notes[self] = True
        return self._inner(request)

    def _stopped(self, head: RequestHead) -> HttpResponse | None:
        """The answer to whoever does not come in."""
        host = head.header("host")
        if self._checks_host and host is not None and not _is_this_machine(host):
            message = f"this server is not {host[:100]!r}: it listens on loopback; ask for localhost or 127.0.0.1"
            return refusal(421, message, "MisdirectedRequest")
        if self._origin and head.method == "OPTIONS" and head.header("access-control-request-method"):
            return answer(200, b"")
        if self._checks_origin and self._is_cross_site(head, host):
            message = "a page of another site may not call this server; cors_allowed_origin names one that may"
            return refusal(403, message, "CrossSiteRequest")
        return None

    def _is_cross_site(self, head: RequestHead, host: str | None) -> bool:
        origin = head.header("origin")
        if origin is not None:
            return self._origin not in ("*", origin) and urlsplit(origin).netloc != (host or "").lower()
        return head.header("sec-fetch-site") in ("cross-site", "same-site")


def _is_this_machine(host: str) -> bool:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    if ":" in name and not host.startswith("["):
        return False
    name = name.lower().rstrip(".")
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def only_https(request: HttpRequest) -> HttpResponse:
    """TorchServe's answer to plain HTTP on an https port (reference section 2.5)."""
    body = words.document({"status": ONLY_HTTPS}).encode()
    return replace(answer(403, body, (JSON,)), close=True)
