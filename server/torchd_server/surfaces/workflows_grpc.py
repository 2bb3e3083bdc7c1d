"""Workflows over gRPC: WorkflowManagementService on the management port, WorkflowInferenceService on the other."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc

from torchd_protos import workflow_pb2 as pb
from torchd_protos.frames import Call, Header, Part
from torchd_protos.workflow_pb2_grpc import WorkflowInferenceServiceServicer, WorkflowManagementServiceServicer
from torchd_server import errors
from torchd_server.surfaces.auth import Access
from torchd_server.surfaces.status import abort
from torchd_server.workflows import RegisterWorkflow, Workflows, WorkflowStatus

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Q = TypeVar("Q")
R = TypeVar("R")
Method = Callable[[Any, Q, Context], Awaitable[R]]
# What a caller of each service must show.
ACCESS = {"WorkflowManagementService": Access.MANAGEMENT, "WorkflowInferenceService": Access.INFERENCE}
# Metadata that gRPC itself adds; everything else is the client's and reaches the handlers.
_GRPC_METADATA = ("grpc-", "user-agent")


def _answers_errors(method: Method[Q, R]) -> Method[Q, R]:
    """The door of this surface: every error leaves with its status."""

    async def call(self: Any, request: Q, context: Context) -> R:
        try:
            return await method(self, request, context)
        except Exception as error:
            await abort(context, error)
            raise

    return call


class WorkflowManagementSurface(WorkflowManagementServiceServicer):
    """Translates; `Workflows` decides. Zero and empty stand for "not given"."""

    def __init__(self, workflows: Workflows) -> None:
        self._workflows = workflows

    @_answers_errors
    async def RegisterWorkflow(
        self, request: pb.RegisterWorkflowRequest, context: Context
    ) -> pb.RegisterWorkflowResponse:
        """Registers a workflow."""
        name = await self._workflows.register(
            RegisterWorkflow(
                request.url,
                request.workflow_name or None,
                request.response_timeout or None,
                request.startup_timeout or None,
                request.s3_sse_kms,
            )
        )
        return pb.RegisterWorkflowResponse(workflow=_workflow(self._workflows.describe(name)))

    @_answers_errors
    async def DescribeWorkflow(
        self, request: pb.DescribeWorkflowRequest, context: Context
    ) -> pb.DescribeWorkflowResponse:
        """Describes a workflow."""
        status = self._workflows.describe(_required(request.workflow_name))
        return pb.DescribeWorkflowResponse(workflow=_workflow(status))

    @_answers_errors
    async def ListWorkflows(self, request: pb.ListWorkflowsRequest, context: Context) -> pb.ListWorkflowsResponse:
        """Lists workflows."""
        page = self._workflows.list(request.limit, request.next_page_token)
        return pb.ListWorkflowsResponse(
            workflows=[_workflow(status) for status in page.workflows], next_page_token=page.next_token
        )

    @_answers_errors
    async def UnregisterWorkflow(
        self, request: pb.UnregisterWorkflowRequest, context: Context
    ) -> pb.UnregisterWorkflowResponse:
        """Removes a workflow."""
        await self._workflows.unregister(_required(request.workflow_name))
        return pb.UnregisterWorkflowResponse()


class WorkflowInferenceSurface(WorkflowInferenceServiceServicer):
    """Translates; `Workflows` decides."""

    def __init__(self, workflows: Workflows) -> None:
        self._workflows = workflows

    @_answers_errors
    async def WorkflowPredictions(
        self, request: pb.WorkflowPredictionsRequest, context: Context
    ) -> pb.WorkflowPredictionsResponse:
        """One answer of the whole graph."""
        reply = await self._workflows.predict(_call(request, context))
        return pb.WorkflowPredictionsResponse(prediction=bytes(reply.body))


def _required(workflow_name: str) -> str:
    if not workflow_name:
        raise errors.BadRequest("Parameter workflow_name is required.")
    return workflow_name


def _workflow(status: WorkflowStatus) -> pb.Workflow:
    return pb.Workflow(
        name=status.name,
        url=status.url,
        nodes=[
            pb.Node(
                name=node.name,
                url=node.url,
                parents=status.spec.parents[node.name],
                workers=node.settings.max_workers,
                batch_size=node.settings.batch_size,
                max_batch_delay_ms=node.settings.max_batch_delay_ms,
                retry_attempts=node.settings.retry_attempts,
                timeout_ms=node.settings.timeout_ms,
            )
            for node in status.spec.nodes
        ],
    )


def _call(request: pb.WorkflowPredictionsRequest, context: Context) -> Call:
    remaining = context.time_remaining()
    return Call(
        model=_required(request.workflow_name),
        request_id=str(uuid.uuid4()),
        headers=[
            Header(name, value)
            for name, value in context.invocation_metadata() or ()
            if isinstance(value, str) and not name.startswith(_GRPC_METADATA)
        ],
        parts=[Part(name, "", value) for name, value in request.input.items()],
        timeout_ms=0 if remaining is None else max(1, int(remaining * 1000)),
    )
