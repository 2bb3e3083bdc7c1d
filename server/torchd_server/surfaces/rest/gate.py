"""In front of a port's routes: what browsers are told (CORS), and whom a browser may be sent by (Host, Origin)."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from urllib.parse import urlsplit

from torchd_server.settings import Cors
from torchd_server.surfaces.rest.answers import JSON, answer, refusal
from torchd_server.surfaces.rest.http1 import Handle, HttpResponse, Refuse
from torchd_server.surfaces.rest.http1_reader import HttpRequest
from torchd_server.torchserve import words

ONLY_HTTPS = "This TorchServe instance only accepts HTTPS requests"


class Gate:
    """Stands around a port's handle and its refusals.

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
        self._headers = tuple((name, value) for name, value in named if value)

    @property
    def handle(self) -> Handle:
        """The guarded handle; the routes' own where nothing is to be done."""
        return self._handle if self._headers or self._checks_host or self._checks_origin else self._inner

    @property
    def refuse(self) -> Refuse:
        """What the HTTP server refuses with, CORS headers included."""
        return lambda status, message: self._told(refusal(status, message))

    async def _handle(self, request: HttpRequest) -> HttpResponse:
        host = request.header("host")
        if self._checks_host and host is not None and not _is_this_machine(host):
            message = f"this server is not {host[:100]!r}: it listens on loopback; ask for localhost or 127.0.0.1"
            return self._told(refusal(421, message, "MisdirectedRequest"))
        if self._origin and request.method == "OPTIONS" and request.header("access-control-request-method"):
            return self._told(answer(200, b""))
        if self._checks_origin and self._is_cross_site(request, host):
            message = "a page of another site may not call this server; cors_allowed_origin names one that may"
            return self._told(refusal(403, message, "CrossSiteRequest"))
        return self._told(await self._inner(request))

    def _told(self, response: HttpResponse) -> HttpResponse:
        if self._headers:
            response.headers = (*response.headers, *self._headers)
        return response

    def _is_cross_site(self, request: HttpRequest, host: str | None) -> bool:
        origin = request.header("origin")
        if origin is not None:
            return self._origin not in ("*", origin) and urlsplit(origin).netloc != (host or "").lower()
        return request.header("sec-fetch-site") in ("cross-site", "same-site")


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
