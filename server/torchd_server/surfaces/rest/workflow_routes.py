"""Workflows over REST, as TorchServe 0.12.0 answers them (reference section 10.6): `/workflows` and `/wfpredict`."""

from __future__ import annotations

from typing import Any

from torchd_protos.workflow_pb2 import DESCRIPTOR as WORKFLOW
from torchd_server.request_ids import new_request_id
from torchd_server.surfaces.auth import Access
from torchd_server.surfaces.rest.answers import JSON, answer, document, error_answer
from torchd_server.surfaces.rest.http1 import HttpResponse
from torchd_server.surfaces.rest.http1_reader import HttpRequest
from torchd_server.surfaces.rest.management_routes import given_to, json_type, typed_fields
from torchd_server.surfaces.rest.predictions import TAKES, Door, call_of, form_parts
from torchd_server.surfaces.rest.router import ANY, Endpoint, Parameter, Variables
from torchd_server.torchserve import workflow_words as words
from torchd_server.workflows import RegisterWorkflow, Workflows

# TorchServe reads the word in any case, and does not look at what follows the name.
_DOORS = {
    "wfpredict": "workflowPredictions",
    "wfPredict": "camel_wfPredictions",
    "WfPredict": "pascal_wfPredictions",
    "WFPREDICT": "upper_wfPredictions",
}
WORKFLOW_DOOR = Door()
_MESSAGES = WORKFLOW.message_types_by_name


def workflow_prediction_endpoints(workflows: Workflows) -> list[Endpoint]:
    """`/wfpredict/{workflow}` with any method."""

    async def predict(request: HttpRequest, variables: Variables) -> HttpResponse:
        request_id = new_request_id()
        try:
            named = {"model_name": variables["workflow_name"]}
            reply = await workflows.predict(call_of(request, named, form_parts(request), request_id, WORKFLOW_DOOR))
        except Exception as error:
            return error_answer(error, request_id)
        return answer(200, bytes(reply.body), (JSON,), request_id)

    summary = "Runs a workflow; the answer is that of its last nodes."
    return [
        Endpoint(ANY, f"/{word}/{{workflow_name}}{more}", Access.INFERENCE, predict, operation, summary, takes=TAKES)
        for word, name in _DOORS.items()
        for more, operation in (("", name), ("/{rest=**}", f"{name}_path"))
    ]


def workflow_endpoints(workflows: Workflows) -> list[Endpoint]:
    """`/workflows`: list, register, describe, unregister."""

    async def list_all(request: HttpRequest, variables: Variables) -> HttpResponse:
        given = _given("ListWorkflowsRequest", request, variables)
        return document(200, words.page(workflows.list(given.get("limit", 100), given.get("next_page_token", 0))))

    async def register(request: HttpRequest, variables: Variables) -> HttpResponse:
        given = _given("RegisterWorkflowRequest", request, variables)
        name = await workflows.register(
            RegisterWorkflow(
                url=given.get("url", ""),
                workflow_name=given.get("workflow_name"),
                response_timeout=given.get("response_timeout"),
                startup_timeout=given.get("startup_timeout"),
                s3_sse_kms=given.get("s3_sse_kms", False),
            )
        )
        return document(200, {"status": words.registered(name)})

    async def describe(request: HttpRequest, variables: Variables) -> HttpResponse:
        return document(200, [words.description(workflows.describe(variables["workflow_name"]))])

    async def unregister(request: HttpRequest, variables: Variables) -> HttpResponse:
        await workflows.unregister(variables["workflow_name"])
        return document(200, {"status": words.unregistered(variables["workflow_name"])})

    one = "/workflows/{workflow_name}"
    return [
        _row("GET", "/workflows", list_all, "listWorkflows", "Lists the workflows, a page at a time."),
        _row("POST", "/workflows", register, "registerWorkflow", "Registers a workflow and the models of its nodes."),
        _row("GET", one, describe, "describeWorkflow", "Describes a workflow."),
        _row("DELETE", one, unregister, "unregisterWorkflow", "Removes a workflow and the models of its nodes."),
    ]


def _row(method: str, template: str, action: Any, operation: str, summary: str) -> Endpoint:
    fields = _MESSAGES[f"{operation[0].upper()}{operation[1:]}Request"].fields
    parameters = [
        Parameter(field.name, json_type(field), field.name.replace("_", " "), required=field.name == "url")
        for field in fields
        if f"{{{field.name}}}" not in template
    ]
    takes = ("application/json",) if method == "POST" else ()
    return Endpoint((method,), template, Access.MANAGEMENT, action, operation, summary, tuple(parameters), takes)


def _given(message: str, request: HttpRequest, variables: Variables) -> dict[str, Any]:
    """The message's fields, from the query or a JSON body."""
    fields = {field.name: field for field in _MESSAGES[message].fields}
    return typed_fields(fields, {**given_to(request, True), **variables})
