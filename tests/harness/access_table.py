"""Who may call what, written down by hand: what is served and has no row here fails the tests (S23, E03).

Access is that of the token: "inference", "management", "API", or "" for whoever asks.
"""

from __future__ import annotations

import re

ANY = "GET HEAD POST PUT DELETE PATCH TRACE"
ALL = f"{ANY} OPTIONS"
READ = "GET HEAD"
_DESCRIPTION = {("OPTIONS", "/"): "", (ALL, "/api-description"): ""}
_NODE = "/v2/models/{model_name}"
_VERSION = f"{_NODE}/versions/{{model_version}}"

# Port -> (methods, template) -> whose token opens it.
ROUTES: dict[str, dict[tuple[str, str], str]] = {
    "inference": {
        (READ, "/livez"): "",
        (READ, "/readyz"): "",
        (ALL, "/ping"): "inference",
        (ALL, "/predictions/{model_name}"): "inference",
        (ALL, "/predictions/{model_name}/{model_version}"): "inference",
        (ANY, "/predictions/{model_name}/{model_version}/{url_path=**}"): "inference",
        (ANY, "/explanations/{model_name}"): "inference",
        (ANY, "/explanations/{model_name}/{model_version}"): "inference",
        (ANY, "/explanations/{model_name}/{model_version}/{url_path=**}"): "inference",
        (ANY, "/invocations"): "inference",
        (ANY, "/models/{model_name}/invoke"): "inference",
        (ANY, "/{model_name}/predict"): "inference",
        (ANY, "/{model_name}/{model_version}/predict"): "inference",
        (ANY, "/wfpredict/{workflow_name}"): "inference",
        (ANY, "/wfpredict/{workflow_name}/{rest=**}"): "inference",
        (ANY, "/wfPredict/{workflow_name}"): "inference",
        (ANY, "/wfPredict/{workflow_name}/{rest=**}"): "inference",
        (ANY, "/WfPredict/{workflow_name}"): "inference",
        (ANY, "/WfPredict/{workflow_name}/{rest=**}"): "inference",
        (ANY, "/WFPREDICT/{workflow_name}"): "inference",
        (ANY, "/WFPREDICT/{workflow_name}/{rest=**}"): "inference",
        (READ, "/"): "inference",
        (READ, "/v1/models"): "inference",
        ("GET", "/v1/models/{model_name}"): "inference",
        (ANY, "/v1/models/{model_name}:predict"): "inference",
        (ANY, "/v1/models/{model_name}:explain"): "inference",
        (READ, "/v2"): "inference",
        (READ, "/v2/health/live"): "inference",
        (READ, "/v2/health/ready"): "inference",
        ("POST", "/v2/repository/index"): "inference",
        (READ, _NODE): "inference",
        (READ, f"{_NODE}/ready"): "inference",
        (ANY, f"{_NODE}/infer"): "inference",
        (ANY, f"{_NODE}/explain"): "inference",
        (READ, _VERSION): "inference",
        (READ, f"{_VERSION}/ready"): "inference",
        (ANY, f"{_VERSION}/infer"): "inference",
        (ANY, f"{_VERSION}/explain"): "inference",
        **_DESCRIPTION,
    },
    "management": {
        ("GET POST", "/models"): "management",
        ("GET PUT DELETE OPTIONS", "/models/{model_name}"): "management",
        ("GET PUT DELETE OPTIONS", "/models/{model_name}/{model_version}"): "management",
        ("PUT", "/models/{model_name}/{model_version}/set-default"): "management",
        ("GET", "/devices"): "management",
        ("GET POST", "/workflows"): "management",
        ("GET DELETE", "/workflows/{workflow_name}"): "management",
        ("GET", "/v1/models/{model_name}"): "management",
        (ALL, "/token"): "API",
        **_DESCRIPTION,
    },
    "metrics": {(ALL, "/metrics"): "", **_DESCRIPTION},
}

# Port -> gRPC service -> whose token opens it.
SERVICES: dict[str, dict[str, str]] = {
    "grpc_inference": {
        "org.pytorch.serve.grpc.inference.InferenceAPIsService": "inference",
        "inference.GRPCInferenceService": "inference",
        "org.pytorch.serve.grpc.openinference.GRPCInferenceService": "inference",
        "torchd.workflow.WorkflowInferenceService": "inference",
        "grpc.health.v1.Health": "",
        "grpc.reflection.v1alpha.ServerReflection": "",
    },
    "grpc_management": {
        "org.pytorch.serve.grpc.management.ManagementAPIsService": "management",
        "torchd.workflow.WorkflowManagementService": "management",
        "grpc.health.v1.Health": "",
        "grpc.reflection.v1alpha.ServerReflection": "",
    },
}


def rows(port: str) -> dict[tuple[str, str], str]:
    """(method, template) -> access, of one REST port."""
    return {
        (method, template): access for (methods, template), access in ROUTES[port].items() for method in methods.split()
    }


def path_of(template: str) -> str:
    """A path that leads to this template."""
    return re.sub(r"\{\w+\}", "m", template).replace("{rest=**}", "more").replace("{url_path=**}", "more")
