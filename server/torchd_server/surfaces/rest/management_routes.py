"""The management port: the rules of protos/http.yaml as endpoints, and each rule's method with REST's defaults."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from torchd_protos.http_rules import HTTP_RULES, HttpRule
from torchd_protos.management_pb2 import DESCRIPTOR as MANAGEMENT
from torchd_server import errors
from torchd_server.management import RECONFIGURABLE, Management, RegisterModel
from torchd_server.surfaces import devices
from torchd_server.surfaces.auth import Access
from torchd_server.surfaces.rest.answers import JSON, answer, document
from torchd_server.surfaces.rest.http1 import HttpResponse
from torchd_server.surfaces.rest.http1_reader import HttpRequest
from torchd_server.surfaces.rest.openapi import description
from torchd_server.surfaces.rest.router import Endpoint, Parameter, Variables, query_of
from torchd_server.torchserve import words

Run = Callable[[dict[str, Any]], Awaitable[HttpResponse]]
_SUMMARIES = {
    "ListModels": "Lists the models, a page at a time.",
    "RegisterModel": "Registers a model; its parameters in the query or as a JSON object.",
    "DescribeModel": 'Describes one version of a model, the default one, or with the version "all" every one.',
    "ScaleWorker": "Changes the number of workers of a model, or its settings, while it runs.",
    "SetDefault": "Makes a version the one that requests without a version get.",
    "UnregisterModel": "Removes a version once its accepted requests are answered.",
    "ListDevices": "Lists the devices of this server, who holds which, and why there are no others.",
}


def management_endpoints(management: Management) -> list[Endpoint]:
    """Every rule's endpoint, and the description of one model."""
    runs = _runs(management)
    rules = [_rule_endpoint(rule, runs) for rule in HTTP_RULES]

    async def of_model(request: HttpRequest, variables: Variables) -> HttpResponse:
        management.describe(variables["model_name"], variables.get("model_version", ""))
        mine = [row for row in rules if row.template.startswith("/models/{model_name}")]
        return document(200, description(mine, variables))

    summary = "A model's part of this description."
    return [
        *rules,
        *(
            Endpoint(("OPTIONS",), template, Access.MANAGEMENT, of_model, operation, summary)
            for template, operation in (
                ("/models/{model_name}", "describeApi"),
                ("/models/{model_name}/{model_version}", "version_describeApi"),
            )
        ),
    ]


def _rule_endpoint(rule: HttpRule, runs: Mapping[str, Run]) -> Endpoint:
    rpc = rule.selector.rpartition(".")[2]
    service = MANAGEMENT.services_by_name[rule.selector.split(".")[-2]]
    fields = {field.name: field for field in service.methods_by_name[rpc].input_type.fields}
    in_path = re.findall(r"\{(\w+)\}", rule.template)

    async def action(request: HttpRequest, variables: Variables) -> HttpResponse:
        given = {**given_to(request, rule.body), **variables}
        if given.get("url") == "":  # given and empty is something else than not given
            raise errors.ArchiveNotFound("empty url")
        return await runs[rpc](typed_fields(fields, given))

    return Endpoint(
        (rule.method,),
        rule.template,
        Access.MANAGEMENT,
        action,
        _operation_name(rpc, in_path),
        _SUMMARIES[rpc],
        tuple(
            Parameter(name, json_type(field), name.replace("_", " "), required=name == "url")
            for name, field in fields.items()
            if name not in in_path and (name != "model_version" or rpc == "ScaleWorker")
        ),
        ("application/json",) if rule.body else (),
    )


def _operation_name(rpc: str, in_path: list[str]) -> str:
    name = rpc[0].lower() + rpc[1:]
    return f"version_{name}" if "model_version" in in_path and rpc != "SetDefault" else name


def typed_fields(fields: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given for these fields of a message, with their types; the rest is left out, as TorchServe does."""
    return {name: _typed(field, given[name]) for name, field in fields.items() if given.get(name) not in (None, "")}


def json_type(field: Any) -> str:
    """JSON schema's name for a field's type."""
    return "boolean" if field.type == field.TYPE_BOOL else "integer" if field.type == field.TYPE_INT32 else "string"


def given_to(request: HttpRequest, takes_body: bool) -> dict[str, Any]:
    """The parameters of the query and, where one is read, of a JSON body."""
    given: dict[str, Any] = dict(query_of(request))
    if takes_body and (request.header("content-type") or "").startswith("application/json"):
        given |= _json_object(request.body)
    return given


def _json_object(body: bytes | bytearray) -> dict[str, Any]:
    """A JSON object; as TorchServe's parser, it may have single quotes where no double quote stands in it."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        if b'"' in body or b"'" not in body:
            raise errors.BadRequest(f"the body is not JSON: {error}") from error
        return _json_object(body.replace(b"'", b'"'))
    if not isinstance(found, dict):
        raise errors.BadRequest("the body must be a JSON object of parameters")
    return found


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


def _runs(management: Management) -> dict[str, Run]:
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
        name, version = given["model_name"], given.get("model_version", "")
        changes = {RECONFIGURABLE[key]: value for key, value in given.items() if key in RECONFIGURABLE}
        if changes:
            change = management.reconfigure(name, version, changes)
            if "min_worker" not in given and "max_worker" not in given:
                return _said(200, words.reconfigured(change, changes))
        change = await management.scale(
            name, version, given.get("min_worker"), given.get("max_worker"), given.get("synchronous", False)
        )
        partly = change.done and change.ready < change.wanted
        return _said(206 if partly else 200 if change.done else 202, words.scaled(change))

    async def describe(given: dict[str, Any]) -> HttpResponse:
        name, version = given["model_name"], given.get("model_version", "")
        found = words.descriptions(management.describe(name, version))
        if given.get("customized") and version != "all":
            metadata = await management.customized(name, version)
            found[0] |= {} if metadata is None else {"customizedMetadata": metadata}
            return answer(200, words.document(found).encode(), (JSON,), reason="")  # as TorchServe passes it on
        return document(200, found)

    async def list_models(given: dict[str, Any]) -> HttpResponse:
        return document(200, words.page(management.list(given.get("limit", 100), given.get("next_page_token", 0))))

    async def set_default(given: dict[str, Any]) -> HttpResponse:
        return _said(200, words.default_set(management.set_default(given["model_name"], given["model_version"])))

    async def unregister(given: dict[str, Any]) -> HttpResponse:
        change = await management.unregister(given["model_name"], given.get("model_version", ""))
        return _said(200, words.unregistered(change))

    async def list_devices(given: dict[str, Any]) -> HttpResponse:
        return document(200, devices.document(management.devices()))

    return {
        "RegisterModel": register,
        "ScaleWorker": scale,
        "DescribeModel": describe,
        "ListModels": list_models,
        "SetDefault": set_default,
        "UnregisterModel": unregister,
        "ListDevices": list_devices,
    }


def _said(status: int, sentence: str) -> HttpResponse:
    return document(status, {"status": sentence})
