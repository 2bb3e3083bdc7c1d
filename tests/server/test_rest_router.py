"""The router: what is found, who is let in, and a description that tools accept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import FakePlacement, ManualClock, machinery
from harness.access_table import ROUTES, path_of, rows
from harness.answers import answered
from openapi_spec_validator import validate

from torchd_server import errors
from torchd_server.inference import Inference
from torchd_server.management import Management
from torchd_server.metrics import Metrics
from torchd_server.open_inference import OpenInference
from torchd_server.registry import ModelRegistry
from torchd_server.settings import Limits, ModelSettings
from torchd_server.store import ModelStore
from torchd_server.surfaces.auth import Access
from torchd_server.surfaces.rest.answers import document
from torchd_server.surfaces.rest.http1 import Handle, HttpResponse
from torchd_server.surfaces.rest.http1_reader import HttpRequest, RequestHead
from torchd_server.surfaces.rest.openapi import description, description_endpoints
from torchd_server.surfaces.rest.router import ANY, Endpoint, Router, Variables, segments
from torchd_server.surfaces.rest.routes import (
    inference_endpoints,
    management_port_endpoints,
    metrics_endpoints,
    port,
)
from torchd_server.surfaces.rest.tokens import TokenRenewal
from torchd_server.surfaces.token_file import TokenFile
from torchd_server.workflow_store import WorkflowStore
from torchd_server.workflows import Workflows


async def said(request: HttpRequest, variables: Variables) -> HttpResponse:
    return document(200, dict(variables))


def endpoint(template: str, *methods: str, access: Access = Access.INFERENCE, operation: str = "") -> Endpoint:
    return Endpoint(methods or ANY, template, access, said, operation or template, "")


def found(router: Router, method: str, path: str) -> Any:
    result = router.find(method, segments(path))
    return result if isinstance(result, int) else (result[0].operation, result[1])


@pytest.fixture
def router() -> Router:
    """A few templates that get in each other's way."""
    router = Router()
    router.add(
        endpoint(template)
        for template in (
            "/{m}/predict",
            "/models/{m}",
            "/models/{m}/{v}",
            "/models/{m}/invoke",
            "/v1/models/{m}:predict",
            "/v1/models/{m}",
            "/predictions/{m}/{v}/{rest=**}",
        )
    )
    router.add([endpoint("/", "OPTIONS")])
    return router


@pytest.mark.parametrize(
    ("method", "path", "operation", "variables"),
    [
        ("GET", "/models/a", "/models/{m}", {"m": "a"}),
        ("GET", "/models/a/", "/models/{m}", {"m": "a"}),
        ("GET", "/models/a//", "/models/{m}", {"m": "a"}),
        ("PUT", "/models/a/1.0", "/models/{m}/{v}", {"m": "a", "v": "1.0"}),
        ("POST", "/models/a/invoke", "/models/{m}/invoke", {"m": "a"}),
        ("POST", "/models/predict", "/models/{m}", {"m": "predict"}),
        ("POST", "/a%2Fb/predict", "/{m}/predict", {"m": "a/b"}),
        ("POST", "/v1/models/a:predict", "/v1/models/{m}:predict", {"m": "a"}),
        ("GET", "/v1/models/a", "/v1/models/{m}", {"m": "a"}),
        ("GET", "/predictions/a/1/x/y", "/predictions/{m}/{v}/{rest=**}", {"m": "a", "v": "1", "rest": "x/y"}),
        ("OPTIONS", "/", "/", {}),
    ],
)
def test_the_nearest_template_is_found(
    router: Router, method: str, path: str, operation: str, variables: dict[str, str]
) -> None:
    """Reference section 2.1: trailing empty segments do not count; words stand before variables."""
    assert found(router, method, path) == (operation, variables)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/", 405),
        ("GET", "/predictions/a", 404),
        ("POST", "/v1/models/:predict", 200),
        ("GET", "/models//1.0", 404),
        ("OPTIONS", "/models/a", 405),
        ("BREW", "/models/a", 405),
        ("GET", "//predict", 404),
    ],
)
def test_the_rest_is_404_or_405(router: Router, method: str, path: str, status: int) -> None:
    if status == 200:  # a name may be anything but empty
        assert found(router, method, path) == ("/v1/models/{m}", {"m": ":predict"})
    else:
        assert found(router, method, path) == status


def test_who_came_first_keeps_the_path() -> None:
    router = Router()
    router.add([endpoint("/a", "GET", operation="first")])
    router.add([endpoint("/a", "GET", "POST", operation="second")])
    assert [found(router, method, "/a")[0] for method in ("GET", "POST")] == ["first", "second"]


def test_an_endpoint_without_access_cannot_exist() -> None:
    """Default deny: whoever forgets to say who may call it gets no endpoint."""
    with pytest.raises(TypeError, match="Access"):
        Endpoint(ANY, "/a", None, said, "a", "")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Endpoint(ANY, "/a", action=said, operation="a", summary="")  # type: ignore[call-arg]


class OnlyFor:
    """A guard that lets in one access with one token."""

    def __init__(self, access: Access, token: str) -> None:
        self.access, self.token = access, token
        self.asked: list[Access] = []

    def check(self, access: Access, authorization: Sequence[str]) -> None:
        """Refuses everything else."""
        self.asked.append(access)
        if access is not Access.OPEN and (access is not self.access or f"Bearer {self.token}" not in authorization):
            raise errors.BadRequest("no")


class Server:
    """Everything the endpoints need, without models."""

    def __init__(self, tmp_path: Path) -> None:
        (tmp_path / "store").mkdir()
        registry = ModelRegistry()
        inference = Inference(registry)
        open_inference = OpenInference(registry, inference)
        management = Management(
            registry,
            ModelStore(tmp_path / "store", tmp_path),
            machinery(FakePlacement(), ManualClock()),
            Metrics(),
            ModelSettings(),
            Limits(),
            True,
            lambda _: 1,
        )
        store = WorkflowStore(tmp_path / "store", tmp_path)
        workflows = Workflows(store, management, registry, inference, ManualClock(), Limits(), True)
        renewal = TokenRenewal(TokenFile(tmp_path / "keys", 60.0, False), False)
        self.ports = {
            "inference": inference_endpoints(inference, open_inference, workflows),
            "management": management_port_endpoints(management, open_inference, workflows, renewal),
            "metrics": metrics_endpoints(Metrics()),
        }
        self.ports["all"] = [row for endpoints in list(self.ports.values()) for row in endpoints]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """The endpoints of every port."""
    return Server(tmp_path)


def ask(handle: Handle, method: str, path: str, *headers: tuple[str, str]) -> tuple[int, Any]:
    request = HttpRequest(RequestHead(method, path, path, "", headers))

    response = asyncio.run(answered(handle, request))
    assert isinstance(response.body, bytes)
    return response.status, response.body


def test_the_guard_is_asked_before_anything_is_done(server: Server) -> None:
    """With both APIs on one address each endpoint still needs its own key (reference section 2.1)."""
    guard = OnlyFor(Access.INFERENCE, "k")
    handle = port(server.ports["all"], guard)
    key = ("Authorization", "Bearer k")
    assert ask(handle, "GET", "/ping", key)[0] == 200
    assert ask(handle, "GET", "/ping")[0] == 400
    assert ask(handle, "GET", "/models", key)[0] == 400
    assert guard.asked == [Access.INFERENCE, Access.INFERENCE, Access.MANAGEMENT]


@pytest.mark.parametrize("name", ROUTES)
def test_every_route_has_its_row_in_the_table_of_access(server: Server, name: str) -> None:
    """S23: a new route, a new method of one, or another access fails here until a person has written it down."""
    router = Router()
    router.add(server.ports[name])
    router.add(description_endpoints(router))
    opens = {Access.OPEN: "", Access.INFERENCE: "inference", Access.MANAGEMENT: "management", Access.ADMIN: "API"}
    served = {
        (method, row.template): opens[found[0].access]
        for row in router.endpoints
        for method in row.methods
        if not isinstance(found := router.find(method, segments(path_of(row.template))), int)
    }
    assert served == rows(name)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/api-description"])
def test_what_is_open_needs_no_key(server: Server, path: str) -> None:
    assert ask(port(server.ports["all"], OnlyFor(Access.INFERENCE, "k")), "GET", path)[0] == 200


@pytest.mark.parametrize("name", ["inference", "management", "metrics", "all"])
@pytest.mark.parametrize(("method", "path"), [("OPTIONS", "/"), ("GET", "/api-description")])
def test_the_description_is_valid_and_tells_what_is_served(server: Server, name: str, method: str, path: str) -> None:
    """Reference section 0, row 12: TorchServe's repeats an operation id."""
    status, body = ask(port(server.ports[name]), method, path)
    described = json.loads(body)
    validate(described)
    assert status == 200
    ids = [operation["operationId"] for methods in described["paths"].values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)
    served = {row.template.replace("=**", "") for row in server.ports[name]} | {"/", "/api-description"}
    assert set(described["paths"]) == served


def test_the_description_of_one_model_has_its_name_in_it(server: Server) -> None:
    rows = [row for row in server.ports["inference"] if row.template == "/predictions/{model_name}"]
    described = description(rows, {"model_name": "bert"})
    validate(described)
    assert list(described["paths"]) == ["/predictions/bert"]
