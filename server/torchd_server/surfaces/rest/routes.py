"""The REST ports: which path is which use case. Management's routes come from protos/http.yaml; the rows a rule cannot
say (raw bodies, any verb, TorchServe's own documents) stand here by hand."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

from torchd_protos.frames import Call, Header, Part, Reply
from torchd_protos.http_rules import HTTP_RULES, HttpRule
from torchd_protos.management_pb2 import DESCRIPTOR as MANAGEMENT
from torchd_server import errors
from torchd_server.inference import Inference
from torchd_server.management import Management, RegisterModel
from torchd_server.metrics import Metrics
from torchd_server.surfaces.rest.answers import (
    NOT_ALLOWED,
    NOT_FOUND,
    answer,
    answers_errors,
    document,
    error_answer,
    refusal,
)
from torchd_server.surfaces.rest.bodies import BodyInvalid, BodyLimits, parts_of
from torchd_server.surfaces.rest.http1 import Handle, HttpResponse
from torchd_server.surfaces.rest.http1_reader import HttpRequest
from torchd_server.surfaces.rest.workflow_routes import manage_workflows, predict_workflow
from torchd_server.torchserve import words
from torchd_server.workflows import Workflows

PARAMETERS_AT_MOST = 100
_GRPC_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_GRPC_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
MOST_SECONDS = 365 * 86_400.0


def segments(path: str) -> list[str]:
    """The path's parts, decoded one by one; trailing empty ones do not count, as in TorchServe."""
    parts = path.split("/")[1:]
    while parts and not parts[-1]:
        parts.pop()
    return [unquote(part) for part in parts]


def inference_port(inference: Inference, workflows: Workflows | None = None) -> Handle:
    """`/ping`, `/predictions/...` and `/wfpredict/...` with any method."""
    limits = BodyLimits()

    async def handle(request: HttpRequest) -> HttpResponse:
        match segments(request.path):
            case ["ping"]:
                healthy = inference.is_healthy()
                return document(200 if healthy else 500, {"status": "Healthy" if healthy else "Unhealthy"})
            case ["predictions", model, *rest] if request.method != "OPTIONS":
                version, *extra = rest or [""]
                return await _predict(inference, limits, request, model, version, "/".join(extra))
            case [first, workflow, *_] if workflows is not None and first.lower() == "wfpredict":
                request_id = str(uuid.uuid4())
                return await predict_workflow(
                    workflows, lambda: _call(request, limits, request_id, workflow, "", ""), request_id
                )
            case ["predictions", *_]:
                return refusal(405, NOT_ALLOWED)
            case _:
                return refusal(404, NOT_FOUND)

    return answers_errors(handle)


async def _predict(
    inference: Inference, limits: BodyLimits, request: HttpRequest, model: str, version: str, url_path: str
) -> HttpResponse:
    request_id = str(uuid.uuid4())
    try:
        call = _call(request, limits, request_id, model, version, url_path)
        replies = inference.stream(call)
        first = await anext(replies)  # a request always ends in a reply or an error
        if first.more:
            return answer(
                first.status or 200, _chunks(first, replies), _stream_headers(first), request_id, first.reason
            )
        await replies.aclose()
        return answer(first.status or 200, bytes(first.body), _headers(first), request_id, first.reason)
    except Exception as error:
        return error_answer(error, request_id)


def _call(request: HttpRequest, limits: BodyLimits, request_id: str, model: str, version: str, url_path: str) -> Call:
    try:
        parts = parts_of(request.header("content-type"), request.body, limits)
    except BodyInvalid as error:
        raise errors.BadRequest(str(error)) from error
    headers = [Header(name, value) for name, value in request.headers]
    return Call(
        model=model,
        version=version,
        request_id=request_id,
        headers=[*headers, Header("url_path", url_path), Header("explain", "False")],
        parts=[Part(*part) for part in parts],
        timeout_ms=timeout_ms(request),
    )


def timeout_ms(request: HttpRequest) -> int:
    """The client's deadline: `Request-Timeout` in seconds or `grpc-timeout`; 0 without one. A bad one is BadRequest."""
    seconds = request.header("request-timeout")
    if seconds is not None:
        return _milliseconds("Request-Timeout", seconds, _seconds(seconds))
    text = request.header("grpc-timeout")
    if text is None:
        return 0
    match = _GRPC_TIMEOUT.fullmatch(text)
    return _milliseconds("grpc-timeout", text, int(match[1]) * _GRPC_UNITS[match[2]] if match else None)


def _seconds(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,18}(\.\d{1,9})?", text, re.ASCII) else None


def _milliseconds(name: str, text: str, seconds: float | None) -> int:
    if seconds is None or seconds <= 0:
        example = "30 or 0.5" if name == "Request-Timeout" else "500m or 30S"
        raise errors.BadRequest(f"header {name}: {text[:100]!r} is no time above zero; write it as in {example}")
    return max(1, int(min(seconds, MOST_SECONDS) * 1000))


def _headers(reply: Reply) -> tuple[tuple[str, str], ...]:
    return tuple((header.name, header.value) for header in reply.headers)


def _stream_headers(first: Reply) -> tuple[tuple[str, str], ...]:
    headers = _headers(first)
    return headers if any(name == "ts_stream_next" for name, _ in headers) else (*headers, ("ts_stream_next", "true"))


async def _chunks(first: Reply, replies: AsyncGenerator[Reply, None]) -> AsyncIterator[bytes]:
    try:
        yield bytes(first.body)
        async for reply in replies:
            yield bytes(reply.body)
    finally:
        await replies.aclose()


class _Route:
    """One rule of http.yaml, ready to be compared with a path."""

    def __init__(self, rule: HttpRule) -> None:
        self.method = rule.method
        self.takes_body = rule.body
        self.rpc = rule.selector.rpartition(".")[2]
        self._template = rule.template.split("/")[1:]
        service = MANAGEMENT.services_by_name[rule.selector.split(".")[-2]]
        self.fields = {field.name: field for field in service.methods_by_name[self.rpc].input_type.fields}

    def match(self, path: list[str]) -> dict[str, str] | None:
        """The path's variables; None where the path is another's."""
        if len(path) != len(self._template):
            return None
        found = {}
        for want, have in zip(self._template, path, strict=True):
            if want.startswith("{") and have:
                found[want[1:-1]] = have
            elif want != have:
                return None
        return found

    def parameters(self, variables: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
        """The request's fields with their types; what the method does not know is left out, as TorchServe does."""
        named = {**given, **variables}
        return {
            name: _typed(field, named[name]) for name, field in self.fields.items() if named.get(name) not in (None, "")
        }


def _typed(field: Any, value: Any) -> Any:
    text = str(value).strip()
    if field.type == field.TYPE_BOOL:
        if text.lower() not in ("true", "false"):
            raise errors.BadRequest(f"parameter {field.name}: {text[:100]!r} will not do; write true or false")
        return text.lower() == "true"
    if field.type == field.TYPE_INT32:
        if not re.fullmatch(r"[+-]?\d{1,9}", text, re.ASCII):
            raise errors.BadRequest(
                f"parameter {field.name}: {text[:100]!r} is not a whole number of at most nine digits"
            )
        return int(text)
    return text


Action = Callable[[dict[str, Any]], Awaitable[HttpResponse]]


def management_port(management: Management, workflows: Workflows | None = None) -> Handle:
    """The routes of protos/http.yaml."""
    routes = [_Route(rule) for rule in HTTP_RULES]
    actions = _actions(management)

    async def handle(request: HttpRequest) -> HttpResponse:
        path = segments(request.path)
        if workflows is not None and path[:1] == ["workflows"]:
            return await manage_workflows(workflows, request.method, path, lambda: _given(request, takes_body=True))
        matches = [(route, variables) for route in routes if (variables := route.match(path)) is not None]
        if not matches:
            return refusal(404, NOT_FOUND)
        for route, variables in matches:
            if route.method == request.method:
                return await actions[route.rpc](route.parameters(variables, _given(request, route.takes_body)))
        return refusal(405, NOT_ALLOWED)

    return answers_errors(handle)


def _given(request: HttpRequest, takes_body: bool) -> dict[str, Any]:
    try:
        given: dict[str, Any] = dict(
            parse_qsl(request.query, keep_blank_values=True, max_num_fields=PARAMETERS_AT_MOST)
        )
    except ValueError as error:
        raise errors.BadRequest(f"the query has more than {PARAMETERS_AT_MOST} parameters") from error
    if takes_body and (request.header("content-type") or "").startswith("application/json"):
        try:
            body = json.loads(request.body)
        except (ValueError, RecursionError) as error:
            raise errors.BadRequest(f"the body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise errors.BadRequest("the body must be a JSON object of parameters")
        given |= body
    return given


def _actions(management: Management) -> dict[str, Action]:
    """What each method of ManagementAPIsService does here: REST's defaults where they differ from gRPC's."""

    async def register(given: dict[str, Any]) -> HttpResponse:
        change = await management.register(
            RegisterModel(
                url=given.get("url", ""),
                model_name=given.get("model_name"),
                handler=given.get("handler"),
                runtime=given.get("runtime"),
                batch_size=given.get("batch_size"),
                max_batch_delay_ms=given.get("max_batch_delay"),
                initial_workers=given.get("initial_workers"),
                response_timeout=given.get("response_timeout"),
                startup_timeout=given.get("startup_timeout"),
                synchronous=given.get("synchronous", True),
                s3_sse_kms=given.get("s3_sse_kms", False),
            )
        )
        return _said(200 if change.done else 202, words.registered(change))

    async def scale(given: dict[str, Any]) -> HttpResponse:
        change = await management.scale(
            given["model_name"],
            given.get("model_version", ""),
            given.get("min_worker"),
            given.get("max_worker"),
            given.get("synchronous", False),
        )
        return _said(200 if change.done else 202, words.scaled(change))

    async def describe(given: dict[str, Any]) -> HttpResponse:
        if given.get("customized"):
            raise errors.NotSupported("customized descriptions are not there yet; leave `customized` out")
        return document(
            200, words.descriptions(management.describe(given["model_name"], given.get("model_version", "")))
        )

    async def list_models(given: dict[str, Any]) -> HttpResponse:
        return document(200, words.page(management.list(given.get("limit", 100), given.get("next_page_token", 0))))

    async def set_default(given: dict[str, Any]) -> HttpResponse:
        return _said(200, words.default_set(management.set_default(given["model_name"], given["model_version"])))

    async def unregister(given: dict[str, Any]) -> HttpResponse:
        change = await management.unregister(given["model_name"], given.get("model_version", ""))
        return _said(200, words.unregistered(change))

    return {
        "RegisterModel": register,
        "ScaleWorker": scale,
        "DescribeModel": describe,
        "ListModels": list_models,
        "SetDefault": set_default,
        "UnregisterModel": unregister,
    }


def _said(status: int, sentence: str) -> HttpResponse:
    return document(status, {"status": sentence})


def metrics_port(metrics: Metrics) -> Handle:
    """`/metrics` with any method."""

    async def handle(request: HttpRequest) -> HttpResponse:
        if segments(request.path) != ["metrics"]:
            return refusal(404, NOT_FOUND)
        return answer(200, metrics.text(), (("content-type", "text/plain; version=0.0.4; charset=utf-8"),))

    return answers_errors(handle)
