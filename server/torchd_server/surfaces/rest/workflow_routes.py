"""Workflows over REST, as TorchServe 0.12.0 answers them (reference section 10.6): `/workflows` and `/wfpredict`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torchd_protos.frames import Call
from torchd_server import errors
from torchd_server.surfaces.rest.answers import JSON, NOT_ALLOWED, NOT_FOUND, answer, document, error_answer, refusal
from torchd_server.surfaces.rest.http1 import HttpResponse
from torchd_server.torchserve import workflow_words as words
from torchd_server.workflows import RegisterWorkflow, Workflows


async def predict_workflow(workflows: Workflows, make_call: Callable[[], Call], request_id: str) -> HttpResponse:
    """`/wfpredict/{workflow}` with any method; the answer is a leaf's, always said to be JSON."""
    try:
        reply = await workflows.predict(make_call())
    except Exception as error:
        return error_answer(error, request_id)
    return answer(200, bytes(reply.body), (JSON,), request_id)


async def register_workflow(workflows: Workflows, given: Mapping[str, Any]) -> HttpResponse:
    """`POST /workflows`."""
    name = await workflows.register(
        RegisterWorkflow(
            url=str(given.get("url") or ""),
            workflow_name=str(given["workflow_name"]) if given.get("workflow_name") else None,
            response_timeout=_number(given, "response_timeout", None),
            startup_timeout=_number(given, "startup_timeout", None),
            s3_sse_kms=str(given.get("s3_sse_kms", "")).lower() == "true",
        )
    )
    return document(200, {"status": words.registered(name)})


def list_workflows(workflows: Workflows, given: Mapping[str, Any]) -> HttpResponse:
    """`GET /workflows`."""
    page = workflows.list(_number(given, "limit", 100), _number(given, "next_page_token", 0))
    return document(200, words.page(page))


def describe_workflow(workflows: Workflows, name: str) -> HttpResponse:
    """`GET /workflows/{workflow}`."""
    return document(200, [words.description(workflows.describe(name))])


async def unregister_workflow(workflows: Workflows, name: str) -> HttpResponse:
    """`DELETE /workflows/{workflow}`."""
    await workflows.unregister(name)
    return document(200, {"status": words.unregistered(name)})


async def manage_workflows(
    workflows: Workflows, method: str, path: list[str], parameters: Callable[[], Mapping[str, Any]]
) -> HttpResponse:
    """The four of them by method and path; `parameters` reads the query and a JSON body."""
    match method, path:
        case "GET", ["workflows"]:
            return list_workflows(workflows, parameters())
        case "POST", ["workflows"]:
            return await register_workflow(workflows, parameters())
        case "GET", ["workflows", name]:
            return describe_workflow(workflows, name)
        case "DELETE", ["workflows", name]:
            return await unregister_workflow(workflows, name)
        case _, ["workflows"] | ["workflows", _]:
            return refusal(405, NOT_ALLOWED)
        case _:
            return refusal(404, NOT_FOUND)


def _number(given: Mapping[str, Any], name: str, default: Any) -> Any:
    text = str(given.get(name) if given.get(name) is not None else "").strip()
    if not text:
        return default
    if not re.fullmatch(r"[+-]?\d{1,9}", text, re.ASCII):
        raise errors.BadRequest(f"parameter {name}: {text[:100]!r} is not a whole number of at most nine digits")
    return int(text)
