"""What a browser may be made to send, and what it is told."""

from __future__ import annotations

import asyncio

import pytest
from harness.answers import answered

from torchd_server.settings import Cors
from torchd_server.surfaces.rest.answers import answer
from torchd_server.surfaces.rest.gate import Gate
from torchd_server.surfaces.rest.http1 import HttpResponse
from torchd_server.surfaces.rest.http1_reader import HttpRequest, RequestHead

CORS = Cors("https://a.example", "GET, POST", "X-Own")
TOLD = {
    "access-control-allow-origin": "https://a.example",
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "X-Own",
}


async def routes(request: HttpRequest) -> HttpResponse:
    return answer(202, b"in")


def ask(gate: Gate, method: str = "POST", **headers: str) -> HttpResponse:
    pairs = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    request = HttpRequest(RequestHead(method, "/predictions/m", "/predictions/m", "", pairs))

    return asyncio.run(answered(gate.handle, request))


SECURE = Gate(routes, Cors(), checks_host=True, checks_origin=True)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "0.0.0.0", "10.0.0.1:80",
     "[2001:db8::1]:80", "", "127.0.0.1:80:80", "1"],
)  # fmt: skip
def test_a_foreign_name_for_this_machine_is_refused(host: str) -> None:
    """S27, E04: the name of a site that resolves to loopback."""
    assert ask(SECURE, Host=host).status == 421


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8080", "localhost", "LOCALHOST:1", "localhost.", "127.9.9.9:1", "[::1]:8080", "[::1]"],
)
def test_every_name_of_this_machine_will_do(host: str) -> None:
    assert ask(SECURE, Host=host).status == 202


def test_a_client_of_http_1_0_names_no_host() -> None:
    assert ask(SECURE).status == 202


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_what_another_site_makes_a_browser_send_is_refused(method: str, headers: dict[str, str]) -> None:
    """S27: no token is looked at, and no CORS header is there by which the site could read the answer."""
    refused = ask(SECURE, method, Host="localhost:8080", **headers)
    assert refused.status == 403
    assert not [name for name, _ in refused.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": "http://localhost:8080"}, {"Sec_Fetch_Site": "same-origin"}, {"Sec_Fetch_Site": "none"}],
)
def test_this_site_and_programs_that_are_no_browsers_come_in(headers: dict[str, str]) -> None:
    assert ask(SECURE, Host="localhost:8080", **headers).status == 202


@pytest.mark.parametrize("origin", ["https://a.example", "*"])
def test_a_site_that_is_named_may_call(origin: str) -> None:
    gate = Gate(routes, Cors(origin), checks_host=True, checks_origin=True)
    given = {"Host": "localhost", "Origin": "https://a.example"}
    assert ask(gate, **given).status == 202
    assert ask(gate, Host="localhost", Origin="https://b.example").status == (202 if origin == "*" else 403)


def test_the_server_is_given_the_cors_headers_for_every_answer() -> None:
    """Reference 2.5; that they stand on every answer is in test_http1.py."""
    assert dict(Gate(routes, CORS).headers) == TOLD
    assert Gate(routes, Cors()).headers == ()


def test_a_preflight_is_answered_without_a_token() -> None:
    preflight = ask(Gate(routes, CORS), "OPTIONS", Origin="https://a.example", Access_Control_Request_Method="POST")
    assert preflight.status == 200
    assert ask(Gate(routes, CORS), "OPTIONS").status == 202


def test_where_nothing_is_asked_for_nothing_stands_in_the_way() -> None:
    """The path of every request under TorchServe's defaults."""
    assert Gate(routes, Cors()).handle is routes
