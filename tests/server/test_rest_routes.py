"""The REST ports as functions from request to answer: routes, typed parameters, deadlines, TorchServe's shapes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from fakes import FakePlacement, ManualClock, machinery
from harness.answers import answered
from hypothesis import given
from hypothesis import strategies as st

from torchd_protos.http_rules import HTTP_RULES, HttpRule
from torchd_protos.management_pb2 import DESCRIPTOR
from torchd_server import errors
from torchd_server.inference import Inference
from torchd_server.management import Management
from torchd_server.metrics import Metrics
from torchd_server.open_inference import OpenInference
from torchd_server.registry import ModelRegistry
from torchd_server.settings import Limits, ModelSettings
from torchd_server.store import ModelStore
from torchd_server.surfaces.rest.deadlines import timeout_ms
from torchd_server.surfaces.rest.http1 import Handle, HttpResponse
from torchd_server.surfaces.rest.http1_reader import HttpRequest, RequestHead
from torchd_server.surfaces.rest.router import segments
from torchd_server.surfaces.rest.routes import (
    inference_endpoints,
    management_port_endpoints,
    metrics_endpoints,
    port,
)
from torchd_server.workflow_store import WorkflowStore
from torchd_server.workflows import Workflows


class Ports:
    """The three ports over a registry without models and an empty store."""

    def __init__(self, tmp_path: Path) -> None:
        (tmp_path / "store").mkdir()
        self.registry = ModelRegistry()
        self.management = Management(
            self.registry,
            ModelStore(tmp_path / "store", tmp_path),
            machinery(FakePlacement(), ManualClock()),
            Metrics(),
            ModelSettings(),
            Limits(),
            True,
            lambda _: 1,
        )
        inference = Inference(self.registry)
        open_inference = OpenInference(self.registry, inference)
        store = WorkflowStore(tmp_path / "store", tmp_path)
        workflows = Workflows(store, self.management, self.registry, inference, ManualClock(), Limits(), True)
        self.handles = {
            "inference": port(inference_endpoints(inference, open_inference, workflows)),
            "management": port(management_port_endpoints(self.management, open_inference, workflows)),
            "metrics": port(metrics_endpoints(Metrics())),
        }

    def ask(self, port: str, method: str, target: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, Any]]:
        """Status and document of one answer."""
        response = self.send(self.handles[port], method, target, body, **headers)
        assert isinstance(response.body, bytes)
        return response.status, json.loads(response.body)

    @staticmethod
    def send(handle: Handle, method: str, target: str, body: bytes = b"", **headers: str) -> HttpResponse:
        path, _, query = target.partition("?")
        named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        request = HttpRequest(RequestHead(method, target, path, query, named), body)
        return asyncio.run(answered(handle, request))


@pytest.fixture
def ports(tmp_path: Path) -> Ports:
    """The ports."""
    return Ports(tmp_path)


def filled(rule: HttpRule) -> str:
    return rule.template.replace("{model_name}", "nobody").replace("{model_version}", "9")


@pytest.mark.parametrize("rule", HTTP_RULES, ids=lambda rule: f"{rule.method} {rule.template}")
def test_every_rule_leads_to_its_method(ports: Ports, rule: HttpRule) -> None:
    status, document = ports.ask("management", rule.method, filled(rule))
    expected = {
        "ListModels": (200, {"models": []}),
        "ListDevices": (200, {"devices": [], "absent": []}),
        "RegisterModel": (
            400,
            {"code": 400, "type": "BadRequestException", "message": "Parameter url is required."},
        ),
    }.get(
        rule.selector.rpartition(".")[2],
        (404, {"code": 404, "type": "ModelNotFoundException", "message": "Model not found: nobody"}),
    )
    assert (status, document) == expected


def test_every_management_method_has_a_rule() -> None:
    methods = {method.full_name for method in DESCRIPTOR.services_by_name["ManagementAPIsService"].methods}
    assert {rule.selector for rule in HTTP_RULES} == methods


def test_every_field_of_a_template_is_one_of_its_method() -> None:
    service = DESCRIPTOR.services_by_name["ManagementAPIsService"]
    for rule in HTTP_RULES:
        fields = service.methods_by_name[rule.selector.rpartition(".")[2]].input_type.fields_by_name
        variables = [part[1:-1] for part in rule.template.split("/") if part.startswith("{")]
        assert all(name in fields for name in variables)


@pytest.mark.parametrize(
    ("port", "method", "path", "status"),
    [
        ("management", "GET", "/nothing", 404),
        ("management", "GET", "/", 405),
        ("management", "GET", "/models/a/b/c/d", 404),
        ("management", "PUT", "/models/a/1.0/set-something", 404),
        ("management", "PATCH", "/models", 405),
        ("management", "DELETE", "/models", 405),
        ("management", "POST", "/models/a", 405),
        ("management", "GET", "/models/a/1.0/set-default", 405),
        ("management", "GET", "/models/", 200),
        ("inference", "GET", "/nothing", 404),
        ("inference", "GET", "/models", 404),
        ("inference", "POST", "/predictions", 404),
        ("inference", "OPTIONS", "/predictions/a", 404),
        ("inference", "POST", "/predictions/a", 404),
        ("metrics", "GET", "/models", 404),
    ],
)
def test_an_unknown_path_is_404_and_a_known_one_with_another_verb_405(
    ports: Ports, port: str, method: str, path: str, status: int
) -> None:
    found, document = ports.ask(port, method, path)
    assert found == status
    if status != 200:
        assert (document["code"], set(document)) == (status, {"code", "type", "message"})


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/models//1.0", "/models//1.0/set-default", "/models/a//set-default", "/models/%20"])
def test_an_empty_name_in_a_path_is_the_clients_mistake(ports: Ports, method: str, path: str) -> None:
    status, document = ports.ask("management", method, path)
    assert status in (400, 404, 405), document


BAD_NUMBERS = ["1e308", "NaN", "inf", "0x10", "1;2", "1.5", "ten", "--1", "1 2", str(10**18), "%D9%A1", "1_000", "٣"]


@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("POST", "/models", "batch_size"),
        ("POST", "/models", "initial_workers"),
        ("PUT", "/models/a", "min_worker"),
        ("PUT", "/models/a", "max_worker"),
        ("GET", "/models", "limit"),
        ("GET", "/models", "next_page_token"),
    ],
)
def test_a_number_that_is_none_is_refused_by_name(ports: Ports, method: str, path: str, name: str, value: str) -> None:
    """S37."""
    status, document = ports.ask("management", method, f"{path}?url=a.mar&{name}={value}")
    assert status == 400
    assert name in document["message"]


@pytest.mark.parametrize("value", ["yes", "1", "on", "tru", "nope"])
def test_a_switch_that_is_none_is_refused_by_name(ports: Ports, value: str) -> None:
    """S37."""
    status, document = ports.ask("management", "PUT", f"/models/a?synchronous={value}")
    assert (status, "synchronous" in document["message"]) == (400, True)


@pytest.mark.parametrize(("least", "most"), [("-1", "1"), ("2", "1"), ("1", "-1"), ("0", "-5")])
def test_impossible_numbers_of_workers_are_refused(ports: Ports, least: str, most: str) -> None:
    """S37."""
    status, document = ports.ask("management", "PUT", f"/models/a?min_worker={least}&max_worker={most}")
    assert (status, "max_worker" in document["message"]) == (400, True)


def test_a_json_body_gives_parameters_too(ports: Ports) -> None:
    body = json.dumps({"url": "missing.mar", "batch_size": 4, "synchronous": False}).encode()
    status, document = ports.ask("management", "POST", "/models", body, content_type="application/json")
    assert (status, "missing.mar" in document["message"]) == (404, True)


@pytest.mark.parametrize("body", [b"{", b"[]", b'"a"', b"1", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(ports: Ports, body: bytes) -> None:
    status, document = ports.ask("management", "POST", "/models", body, content_type="application/json")
    assert (status, document["type"]) == (400, "BadRequestException")


@pytest.mark.parametrize("body", [b"{'url': 'missing.mar', 'batch_size': '4'}", b'{"url": "missing.mar", "no": 1}'])
def test_a_json_body_is_read_as_leniently_as_torchserves(ports: Ports, body: bytes) -> None:
    """Reference section 2.3: single quotes, numbers as texts, names nobody knows."""
    status, document = ports.ask("management", "POST", "/models", body, content_type="application/json")
    assert (status, "missing.mar" in document["message"]) == (404, True)


def test_an_empty_url_is_not_found_and_a_missing_one_a_bad_request(ports: Ports) -> None:
    """Reference section 2.5."""
    assert ports.ask("management", "POST", "/models?url=")[1]["message"] == "empty url"
    assert ports.ask("management", "POST", "/models")[1]["message"] == "Parameter url is required."


def test_a_query_of_very_many_parameters_is_refused(ports: Ports) -> None:
    status, document = ports.ask("management", "GET", "/models?" + "&".join(f"a{i}=1" for i in range(200)))
    assert (status, "parameters" in document["message"]) == (400, True)


@pytest.mark.parametrize(
    ("headers", "milliseconds"),
    [
        ({}, 0),
        ({"Request-Timeout": "30"}, 30_000),
        ({"Request-Timeout": "0.5"}, 500),
        ({"Request-Timeout": "0.000001"}, 1),
        ({"request-timeout": "31536000"}, 31_536_000_000),
        ({"grpc-timeout": "2H"}, 7_200_000),
        ({"grpc-timeout": "3M"}, 180_000),
        ({"grpc-timeout": "30S"}, 30_000),
        ({"grpc-timeout": "500m"}, 500),
        ({"grpc-timeout": "2500u"}, 2),
        ({"grpc-timeout": "1n"}, 1),
        ({"grpc-timeout": "99999999S"}, 31_536_000_000),
        ({"Request-Timeout": "999999999"}, 31_536_000_000),
        ({"Request-Timeout": "9999999999"}, 31_536_000_000),
        ({"Request-Timeout": "2", "grpc-timeout": "9S"}, 2000),
        *(
            ({"Request-Timeout": bad}, None)
            for bad in ("", "0", "0.0", "-1", "+1", "1e3", "nan", "inf", "1s", " 1", "٣")
        ),
        *(({"Request-Timeout": bad}, None) for bad in ("1,5", "1" * 400)),
        *(({"grpc-timeout": bad}, None) for bad in ("", "0S", "1", "S", "1s", "-1S", "123456789S", "1.5S", "1SS")),
    ],
    ids=str,
)
def test_a_deadline_is_read_or_refused(headers: dict[str, str], milliseconds: int | None) -> None:
    """K07: an absurd deadline is the client's mistake, never a request without one."""
    head = RequestHead("POST", "/", "/", "", tuple(headers.items()))
    if milliseconds is not None:
        assert timeout_ms(head) == milliseconds
        return
    with pytest.raises(errors.BadRequest, match=next(iter(headers))):
        timeout_ms(head)


def test_a_bad_deadline_is_answered_before_the_model_is_looked_for(ports: Ports) -> None:
    status, document = ports.ask("inference", "POST", "/predictions/nobody", b"", Request_Timeout="soon")
    assert (status, "Request-Timeout" in document["message"]) == (400, True)


class Opens:
    """Counts files that are opened while it is switched on; an audit hook cannot be taken away."""

    def __init__(self) -> None:
        self.is_on = False
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if self.is_on and event == "open":
            self.seen.append(str(args[0]))


@pytest.fixture(scope="module")
def opens() -> Opens:
    """One hook for this file."""
    return Opens()


@pytest.fixture
def opened(opens: Opens) -> Iterator[list[str]]:
    """The files opened during one test."""
    opens.seen = []
    opens.is_on = True
    yield opens.seen
    opens.is_on = False


@pytest.mark.parametrize(
    "path",
    [
        "/predictions/..%2f..%2fetc%2fpasswd/1.0",
        "/predictions/../../etc/passwd",
        "/predictions/%2e%2e/%2e%2e",
        "/predictions/%00",
        "/predictions/a%0d%0aX-Evil:1",
    ],
)
def test_a_path_is_a_name_and_never_a_file(ports: Ports, opened: list[str], path: str) -> None:
    """S54."""
    status, document = ports.ask("inference", "POST", path)
    assert (status, document["type"]) == (404, "ModelNotFoundException")
    assert opened == []


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_path_is_split_without_an_error(path: str) -> None:
    parts = segments(f"/{path}")
    assert all(isinstance(part, str) for part in parts)
    assert not parts or parts[-1] or "%" in path


def test_ping_is_healthy_without_models(ports: Ports) -> None:
    assert ports.ask("inference", "GET", "/ping") == (200, {"status": "Healthy"})


def test_every_answer_has_the_common_headers(ports: Ports) -> None:
    for name, path in (("inference", "/ping"), ("management", "/models"), ("metrics", "/metrics"), ("inference", "/x")):
        response = Ports.send(ports.handles[name], "GET", path)
        headers = dict(response.headers)
        assert UUID(response.request_id or "").version == 4
        assert {"Pragma", "Cache-Control", "Expires", "content-type"} <= set(headers)


def test_the_metrics_port_has_metrics(ports: Ports) -> None:
    response = Ports.send(ports.handles["metrics"], "GET", "/metrics")
    assert isinstance(response.body, bytes)
    assert b"# TYPE torchd_requests_total counter" in response.body
