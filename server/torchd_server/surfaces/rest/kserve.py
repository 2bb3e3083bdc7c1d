"""The Open Inference Protocol over REST (KServe v2, with the binary tensor extension), and KServe's first protocol."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from torchd_protos import tensors
from torchd_protos.frames import Header, Part, Reply
from torchd_server import errors
from torchd_server.inference import Inference
from torchd_server.open_inference import OpenInference, ServerMetadata
from torchd_server.request_ids import new_request_id
from torchd_server.surfaces.auth import Access
from torchd_server.surfaces.rest.answers import JSON, answer, document, error_answer
from torchd_server.surfaces.rest.deadlines import timeout_ms
from torchd_server.surfaces.rest.http1 import Answer, HttpResponse
from torchd_server.surfaces.rest.http1_reader import HttpRequest
from torchd_server.surfaces.rest.predictions import (
    KSERVE,
    KSERVE_EXPLAIN,
    Door,
    Prediction,
    call_of,
    form_parts,
    headers_of,
)
from torchd_server.surfaces.rest.router import ANY, Action, Endpoint, Variables
from torchd_server.torchserve import words

HEAD_LENGTH = "Inference-Header-Content-Length"
TAKES = ("application/json", "application/octet-stream")
READ = ("GET", "HEAD")
Awaited = Callable[[HttpRequest, Variables], Awaitable[HttpResponse]]
_V2 = "/v2/models/{model_name}"


def kserve_inference_endpoints(inference: Inference, open_inference: OpenInference) -> list[Endpoint]:
    """`/v2/models/{m}[/versions/{v}]/infer` and `/explain`: always there, as in TorchServe."""

    def action(door: Door) -> Action:
        def infer(request: HttpRequest, variables: Variables) -> Answer:
            request_id = new_request_id()
            length = request.header(HEAD_LENGTH)
            if length is not None and not door.explain:
                return _infer_binary(open_inference, request, variables, request_id, length)
            try:
                call = call_of(request, variables, _json_parts(request), request_id, door)
                return Prediction(inference.submit(call), _error)
            except Exception as error:
                return _error(error, request_id)

        return infer

    return [
        Endpoint(ANY, f"{_V2}{version}/{verb}", Access.INFERENCE, action(door), f"{name}{verb}", summary, takes=TAKES)
        for version, name in (("", "kserve_v2_"), ("/versions/{model_version}", "kserve_v2_version_"))
        for verb, door, summary in (
            ("infer", KSERVE, "Runs a model on tensors."),
            ("explain", KSERVE_EXPLAIN, "Explains a model's answer on tensors."),
        )
    ]


def _json_parts(request: HttpRequest) -> list[Part]:
    """The protocol's body is JSON, also where the client does not say so (Triton's does not)."""
    parts = form_parts(request)
    return parts if request.header("content-type") else [Part(part.name, JSON[1], part.body) for part in parts]


def _error(error: Exception, request_id: str | None = None) -> HttpResponse:
    """TorchServe's error document, with the protocol's own `error` in it: Triton's client looks for that."""
    response = error_answer(error, request_id)
    if isinstance(response.body, bytes):
        said = json.loads(response.body)
        response.body = words.document({**said, "error": said["message"]}).encode()
    return response


def _tells(action: Awaited) -> Action:
    async def call(request: HttpRequest, variables: Variables) -> HttpResponse:
        try:
            return await action(request, variables)
        except Exception as error:
            return _error(error)

    return call


async def _infer_binary(
    open_inference: OpenInference, request: HttpRequest, variables: Variables, request_id: str, length: str
) -> HttpResponse:
    """Tensors behind a JSON head: they go to the worker as they came."""
    try:
        return await _infer_tensors(open_inference, request, variables, request_id, length)
    except Exception as error:
        return _error(error, request_id)


async def _infer_tensors(
    open_inference: OpenInference, request: HttpRequest, variables: Variables, request_id: str, length: str
) -> HttpResponse:
    head = _checked_head(request.body, length)
    body = tensors.prefixed(int(length), request.body)
    name, version = variables["model_name"], variables.get("model_version", "")
    headers = [Header(key, value) for key, value in request.headers]
    headers.append(Header("explain", str(KSERVE.explain)))
    reply = await open_inference.infer(name, version, body, headers, timeout_ms(request.head))
    found = open_inference.answer_of(reply, head, name, version)
    if not _wants_binary(head):
        values = [_with_values(tensor, raw) for tensor, raw in zip(found.head["outputs"], found.raw, strict=True)]
        return answer(200, json.dumps({**found.head, "outputs": values}).encode(), _json_headers(reply), request_id)
    text = json.dumps(found.head).encode()
    own = (("content-type", "application/octet-stream"), (HEAD_LENGTH, str(len(text))))
    return answer(200, b"".join((text, *found.raw)), (*_without_type(headers_of(reply)), *own), request_id)


def _checked_head(body: bytes | bytearray, length: str) -> dict[str, Any]:
    """The JSON in front, once everything it says of the bytes behind it is true; BadRequest otherwise."""
    if not (length.isascii() and length.isdigit() and len(length) < 10) or int(length) > len(body):
        raise errors.BadRequest(f"header {HEAD_LENGTH}: {length[:100]!r} is no length within the body")
    if int(length) > tensors.HEAD_AT_MOST:
        raise errors.BadRequest(
            f"the JSON in front of the tensors has {length} bytes; at most {tensors.HEAD_AT_MOST} will do: "
            "send large tensors as binary data"
        )
    try:
        head, raw = tensors.unpack(tensors.prefixed(int(length), body))
        tensors.raw_of_each(head.get("inputs"), raw)
    except tensors.TensorsInvalid as error:
        raise errors.BadRequest(str(error)) from error
    wanted = head.get("outputs") or []
    if not isinstance(wanted, list) or not all(
        isinstance(output, dict) and isinstance(output.get("name"), str) for output in wanted
    ):
        raise errors.BadRequest("`outputs` must be a list of objects with a name")
    return head


def _wants_binary(head: Mapping[str, Any]) -> bool:
    asked = [head, *(head.get("outputs") or ())]
    options = [each["parameters"] for each in asked if isinstance(each.get("parameters"), dict)]
    return any(option.get("binary_data_output") or option.get("binary_data") for option in options)


def _with_values(tensor: Mapping[str, Any], raw: memoryview) -> dict[str, Any]:
    values = tensors.values_of(tensor["datatype"], raw)
    if tensor["datatype"] == "BYTES":
        values = [value.decode("utf-8", "replace") for value in values]
    parameters = {key: value for key, value in tensor["parameters"].items() if key != tensors.BINARY_SIZE}
    kept = {key: tensor[key] for key in ("name", "datatype", "shape")}
    return {**kept, **({"parameters": parameters} if parameters else {}), "data": values}


def _json_headers(reply: Reply) -> tuple[tuple[str, str], ...]:
    return (*_without_type(headers_of(reply)), ("content-type", "application/json"))


def _without_type(headers: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple(header for header in headers if header[0].lower() != "content-type")


def kserve_endpoints(open_inference: OpenInference) -> list[Endpoint]:
    """What is ready and what there is, in both of KServe's protocols."""

    async def live(request: HttpRequest, variables: Variables) -> HttpResponse:
        return document(200, {"live": True})

    async def ready(request: HttpRequest, variables: Variables) -> HttpResponse:
        is_ready = open_inference.server_is_ready()
        return document(200 if is_ready else 503, {"ready": is_ready})

    async def server(request: HttpRequest, variables: Variables) -> HttpResponse:
        return document(200, asdict(ServerMetadata()))

    async def model(request: HttpRequest, variables: Variables) -> HttpResponse:
        found = open_inference.model_metadata(variables["model_name"], variables.get("model_version", ""))
        return document(200, asdict(found))

    async def model_ready(request: HttpRequest, variables: Variables) -> HttpResponse:
        name, version = variables["model_name"], variables.get("model_version", "")
        is_ready = open_inference.model_is_ready(name, version)
        return document(200 if is_ready else 503, {"name": name, "ready": is_ready})

    async def index(request: HttpRequest, variables: Variables) -> HttpResponse:
        rows = open_inference.index(b'"ready":true' in request.body.replace(b" ", b""))
        return document(
            200,
            [
                {
                    "name": row.name,
                    "version": row.version,
                    "state": "READY" if row.is_ready else "UNAVAILABLE",
                    "reason": row.reason,
                }
                for row in rows
            ],
        )

    async def alive(request: HttpRequest, variables: Variables) -> HttpResponse:
        return document(200, {"status": "alive"})

    async def names(request: HttpRequest, variables: Variables) -> HttpResponse:
        return document(200, {"models": open_inference.names()})

    def row(template: str, action: Awaited, operation: str, summary: str) -> Endpoint:
        return Endpoint(READ, template, Access.INFERENCE, _tells(action), operation, summary)

    versioned = f"{_V2}/versions/{{model_version}}"
    return [
        row("/v2", server, "kserve_v2_server", "Who serves."),
        row("/v2/health/live", live, "kserve_v2_live", "Whether the daemon runs."),
        row("/v2/health/ready", ready, "kserve_v2_ready", "Whether every model that wants workers has them."),
        row(_V2, model, "kserve_v2_model", "What a model takes and gives."),
        row(versioned, model, "kserve_v2_version", "What one version of a model takes and gives."),
        row(f"{_V2}/ready", model_ready, "kserve_v2_model_ready", "Whether a model can answer."),
        row(f"{versioned}/ready", model_ready, "kserve_v2_version_ready", "Whether one version can answer."),
        Endpoint(
            ("POST",),
            "/v2/repository/index",
            Access.INFERENCE,
            index,
            "kserve_v2_index",
            'Every version of every model; with the body {"ready": true} only those that can answer.',
            takes=("application/json",),
        ),
        row("/", alive, "kserve_v1_live", "KServe's first protocol: whether the daemon runs."),
        row("/v1/models", names, "kserve_v1_models", "KServe's first protocol: the models."),
        model_v1_endpoint(open_inference, Access.INFERENCE),
    ]


def model_v1_endpoint(open_inference: OpenInference, access: Access) -> Endpoint:
    """`GET /v1/models/{m}`: TorchServe has it on the management port."""

    async def ready(request: HttpRequest, variables: Variables) -> HttpResponse:
        name = variables["model_name"]
        return document(200, {"name": name, "ready": open_inference.model_is_ready(name)})

    summary = "KServe's first protocol: whether a model can answer."
    return Endpoint(("GET",), "/v1/models/{model_name}", access, ready, "kserve_v1_model_ready", summary)
