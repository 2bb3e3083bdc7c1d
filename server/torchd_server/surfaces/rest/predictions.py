"""The endpoints that run a handler on whatever was sent: `/predictions` and TorchServe's other doors to the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torchd_protos.frames import Call, Header, Part, Reply
from torchd_server import errors
from torchd_server.inference import Inference
from torchd_server.request import Request
from torchd_server.request_ids import new_request_id
from torchd_server.surfaces.auth import Access
from torchd_server.surfaces.rest.answers import answer, document, error_answer
from torchd_server.surfaces.rest.bodies import BodyInvalid, BodyLimits, parts_of
from torchd_server.surfaces.rest.deadlines import timeout_ms
from torchd_server.surfaces.rest.http1 import Answer, HttpResponse, Pending
from torchd_server.surfaces.rest.http1_reader import HttpRequest, RequestHead
from torchd_server.surfaces.rest.openapi import description
from torchd_server.surfaces.rest.router import ANY, Action, Endpoint, Variables, query_of

TAKES = ("*/*", "multipart/form-data", "application/x-www-form-urlencoded")
LIMITS = BodyLimits()


@dataclass(frozen=True, slots=True, eq=False)
class Door:
    """One of TorchServe's ways to a handler: which headers it adds for it, and whether the query reaches it."""

    explain: bool | None = None
    with_path: bool = False
    with_query: bool = False


PREDICT, EXPLAIN = Door(False, with_path=True), Door(True, with_path=True)
KSERVE, KSERVE_EXPLAIN = Door(False), Door(True)
INVOKE = Door(with_query=True)


def prediction_endpoints(inference: Inference) -> list[Endpoint]:
    """Every path that leads to a handler."""

    def door(kind: Door) -> Action:
        return partial(_predict, inference, kind)

    def row(template: str, action: Action, operation: str, summary: str) -> Endpoint:
        return Endpoint(ANY, template, Access.INFERENCE, action, operation, summary, takes=TAKES, gives="")

    def invoke_any(request: HttpRequest, variables: Variables) -> Answer:
        model = dict(query_of(request)).get("model_name") or inference.only_startup_model()
        return _predict(inference, INVOKE, request, {"model_name": model or _named_in_form(request)})

    async def of_model(request: HttpRequest, variables: Variables) -> HttpResponse:
        inference.check_model(variables["model_name"], variables.get("model_version", ""))
        values = {name: value for name, value in variables.items() if value}
        return document(200, description([row for row in rows if row.template in (one, versioned)], values))

    one, versioned = "/predictions/{model_name}", "/predictions/{model_name}/{model_version}"
    rows = [
        row(one, door(PREDICT), "predictions", "Runs the default version of a model."),
        row(versioned, door(PREDICT), "version_predictions", "Runs one version of a model."),
        row(
            f"{versioned}/{{url_path=**}}",
            door(PREDICT),
            "path_predictions",
            "Runs one version of a model; what follows reaches the handler as request header `url_path`.",
        ),
        row("/explanations/{model_name}", door(EXPLAIN), "explanations", "Explains by the default version of a model."),
        row(
            "/explanations/{model_name}/{model_version}",
            door(EXPLAIN),
            "version_explanations",
            "Explains by one version of a model.",
        ),
        row(
            "/explanations/{model_name}/{model_version}/{url_path=**}",
            door(EXPLAIN),
            "path_explanations",
            "Explains by one version of a model; what follows reaches the handler as request header `url_path`.",
        ),
        row(
            "/invocations",
            invoke_any,
            "invocations",
            "Runs the model that the query or the form names as `model_name`, else the only one loaded at start.",
        ),
        row("/models/{model_name}/invoke", door(INVOKE), "invoke", "Runs the default version of a model."),
        row("/{model_name}/predict", door(INVOKE), "predict", "Runs the default version of a model."),
        row(
            "/{model_name}/{model_version}/predict",
            door(INVOKE),
            "version_predict",
            "Runs one version of a model.",
        ),
        row(
            "/v1/models/{model_name}:predict",
            door(KSERVE),
            "kserve_v1_predict",
            "KServe's first protocol: runs a model.",
        ),
        row(
            "/v1/models/{model_name}:explain",
            door(KSERVE_EXPLAIN),
            "kserve_v1_explain",
            "KServe's first protocol: explains.",
        ),
    ]
    described = "A model's description as an OpenAPI document."
    return [
        *rows,
        Endpoint(("OPTIONS",), one, Access.INFERENCE, of_model, "describe_predictions", described),
        Endpoint(("OPTIONS",), versioned, Access.INFERENCE, of_model, "describe_version_predictions", described),
    ]


def _predict(inference: Inference, door: Door, request: HttpRequest, variables: Variables) -> Answer:
    request_id = new_request_id()
    try:
        parts = form_parts(request)
        if door.with_query:
            parts = [*(Part(name, "", value.encode()) for name, value in query_of(request)), *parts]
        return Prediction(inference.submit(call_of(request, variables, parts, request_id, door)))
    except Exception as error:
        return error_answer(error, request_id)


class Prediction(Pending):
    """The handler's answer: in one piece, or as it comes where the handler streams. `failed` words an error."""

    def __init__(self, request: Request, failed: Callable[[Exception, str], HttpResponse] = error_answer) -> None:
        self._request = request
        self._failed = failed
        self._respond: Callable[[HttpResponse], None]

    def when_answered(self, respond: Callable[[HttpResponse], None]) -> None:
        """Has `respond` called with the answer, or with its error's."""
        self._respond = respond
        self._request.when_answered(self._answered)

    def cancel(self) -> None:
        """Nobody wants the answer any more: the request is given up."""
        self._request.cancel()

    def _answered(self, request: Request) -> None:
        request_id = request.call.request_id
        first = request.take()
        if first is None:  # a request always ends in a reply or an error
            response = self._failed(request.error or errors.TorchdError("no answer"), request_id)
        elif first.more:
            response = answer(
                first.status or 200, _Chunks(first, request), _stream_headers(first), request_id, first.reason
            )
        else:
            response = answer(first.status or 200, first.body, headers_of(first), request_id, first.reason)
        self._respond(response)


class _Chunks:
    """A streamed answer, piece by piece; closing it gives the request up, also before its first piece is asked for."""

    def __init__(self, first: Reply, request: Request) -> None:
        self._first: Reply | None = first
        self._request = request
        self._replies = request.replies()

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        first, self._first = self._first, None
        reply = await anext(self._replies) if first is None else first
        return bytes(reply.body)

    async def aclose(self) -> None:
        """Nobody reads on."""
        await self._replies.aclose()
        self._request.cancel()


def call_of(request: HttpRequest, variables: Variables, parts: list[Part], request_id: str, door: Door) -> Call:
    """The call a request makes; TorchServe's headers for handlers stand behind the client's own."""
    noted: tuple[tuple[Header, ...], int] | None = request.head.notes.get(door)
    if noted is None:
        noted = request.head.notes[door] = _headers(request.head, variables, door), timeout_ms(request.head)
    headers, timeout = noted
    return Call(
        model=variables["model_name"],
        version=variables.get("model_version", ""),
        request_id=request_id,
        headers=headers,
        parts=parts,
        timeout_ms=timeout,
    )


def _headers(head: RequestHead, variables: Variables, door: Door) -> tuple[Header, ...]:
    # The chunks of a body are put together by now.
    headers = [Header(name, value) for name, value in head.headers if name.lower() != "transfer-encoding"]
    if door.with_path:
        headers.append(Header("url_path", variables.get("url_path", "")))
    if door.explain is not None:
        headers.append(Header("explain", str(door.explain)))
    return tuple(headers)


def form_parts(request: HttpRequest) -> list[Part]:
    """The parts of a body; one that is not what it says is BadRequest."""
    try:
        return [Part(*part) for part in parts_of(request.header("content-type"), request.body, LIMITS)]
    except BodyInvalid as error:
        raise errors.BadRequest(str(error)) from error


def headers_of(reply: Reply) -> tuple[tuple[str, str], ...]:
    """The headers a handler set."""
    return tuple((header.name, header.value) for header in reply.headers)


def _named_in_form(request: HttpRequest) -> str:
    named: Sequence[str] = [
        bytes(part.body).decode("utf-8", "replace") for part in form_parts(request) if part.name == "model_name"
    ]
    if not named:
        raise errors.BadRequest("Parameter model_name is required.")
    return named[-1]


def _stream_headers(first: Reply) -> tuple[tuple[str, str], ...]:
    headers = headers_of(first)
    return headers if any(name == "ts_stream_next" for name, _ in headers) else (*headers, ("ts_stream_next", "true"))
