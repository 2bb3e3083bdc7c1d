"""The OpenAPI 3.0 document of a port, made from the endpoints that are really served."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torchd_server import __version__
from torchd_server.surfaces.auth import Access
from torchd_server.surfaces.rest.answers import document
from torchd_server.surfaces.rest.http1 import HttpResponse
from torchd_server.surfaces.rest.http1_reader import HttpRequest
from torchd_server.surfaces.rest.router import ANY, Endpoint, Router, Variables

_ERROR = {
    "type": "object",
    "required": ["code", "type", "message"],
    "properties": {
        "code": {"type": "integer", "description": "HTTP status"},
        "type": {"type": "string", "description": "Name of the error"},
        "message": {"type": "string", "description": "What happened, and the way out"},
    },
}


def description(endpoints: Iterable[Endpoint], values: Variables | None = None) -> dict[str, Any]:
    """The document; `values` are put in place of the paths' variables, for the description of one model."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        template = re.sub(r"\{(\w+)=\*\*\}", r"{\1}", endpoint.template)
        path = re.sub(r"\{(\w+)\}", lambda match: (values or {}).get(match[1], match[0]), template)
        for method in _shown(endpoint):
            paths.setdefault(path, {}).setdefault(method.lower(), _operation(endpoint, method, path))
    return {
        "openapi": "3.0.1",
        "info": {
            "title": "TorchServe APIs",
            "description": "torchd, an inference server that speaks TorchServe's APIs",
            "version": __version__,
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _shown(endpoint: Endpoint) -> tuple[str, ...]:
    """Of "any method" one is shown: seven times the same would help nobody."""
    if endpoint.methods != ANY:
        return endpoint.methods
    return ("POST",) if endpoint.takes else ("GET",)


def _operation(endpoint: Endpoint, method: str, path: str) -> dict[str, Any]:
    any_method = " Any method will do." if endpoint.methods == ANY else ""
    parameters = [
        {"in": "path", "name": name, "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    parameters += [
        {
            "in": "query",
            "name": parameter.name,
            "required": parameter.required,
            "description": parameter.summary,
            "schema": {"type": parameter.type},
        }
        for parameter in endpoint.parameters
    ]
    suffix = "" if len(_shown(endpoint)) == 1 else f"_{method.lower()}"
    operation: dict[str, Any] = {
        "operationId": f"{endpoint.operation}{suffix}",
        "description": endpoint.summary + any_method,
        "parameters": parameters,
        "responses": {
            "200": {"description": "Success", "content": {endpoint.gives or "*/*": {"schema": {}}}},
            "default": {
                "description": "Failure",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if endpoint.takes:
        operation["requestBody"] = {"content": {name: {"schema": {}} for name in endpoint.takes}}
    if endpoint.access is not Access.OPEN:
        operation["security"] = [{"token": []}]
    return operation


def description_endpoints(router: Router) -> list[Endpoint]:
    """`/api-description` with any method, and `OPTIONS /`: what `router` serves."""

    async def describe(request: HttpRequest, variables: Variables) -> HttpResponse:
        return document(200, description(router.endpoints))

    summary = "This port's description as an OpenAPI document."
    return [
        Endpoint(("OPTIONS",), "/", Access.OPEN, describe, "apiDescription", summary),
        Endpoint((*ANY, "OPTIONS"), "/api-description", Access.OPEN, describe, "api-description", summary),
    ]
