"""TorchServe's sentences and JSON documents about workflows, as version 0.12.0 writes them."""

from __future__ import annotations

from typing import Any

from torchd_server.workflows import WorkflowPage, WorkflowStatus


def registered(name: str) -> str:
    """The sentence of a registered workflow."""
    return f"Workflow {name} has been registered and scaled successfully."


def unregistered(name: str) -> str:
    """The sentence of a removed workflow."""
    return f'Workflow "{name}" unregistered'


def page(workflows: WorkflowPage) -> dict[str, Any]:
    """The document of a list."""
    rows = [{"workflowName": workflow.name, "workflowUrl": workflow.url} for workflow in workflows.workflows]
    token = {} if workflows.next_token is None else {"nextPageToken": str(workflows.next_token)}
    return {**token, "workflows": rows}


def description(workflow: WorkflowStatus) -> dict[str, Any]:
    """The document of a description."""
    settings = workflow.spec.settings
    return {
        "workflowName": workflow.name,
        "workflowUrl": workflow.url,
        "minWorkers": settings.min_workers,
        "maxWorkers": settings.max_workers,
        "batchSize": settings.batch_size,
        "maxBatchDelay": settings.max_batch_delay_ms,
        "workflowDag": dag(workflow),
    }


def dag(workflow: WorkflowStatus) -> str:
    """The graph as Java prints a map of lists."""
    edges = (f"{node}=[{', '.join(children)}]" for node, children in workflow.spec.dag.items())
    return "{" + ", ".join(edges) + "}"
