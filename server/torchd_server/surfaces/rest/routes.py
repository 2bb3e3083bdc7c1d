"""The REST ports, each a list of endpoints behind a guard; one address for several APIs is one list of them all."""

from __future__ import annotations

from collections.abc import Iterable

from torchd_server.inference import Inference
from torchd_server.management import Management
from torchd_server.metrics import Metrics
from torchd_server.open_inference import OpenInference
from torchd_server.surfaces.auth import Access, Guard
from torchd_server.surfaces.rest.answers import answer
from torchd_server.surfaces.rest.health import health_endpoints
from torchd_server.surfaces.rest.http1 import Handle, HttpResponse
from torchd_server.surfaces.rest.http1_reader import HttpRequest
from torchd_server.surfaces.rest.kserve import kserve_endpoints, kserve_inference_endpoints, model_v1_endpoint
from torchd_server.surfaces.rest.management_routes import management_endpoints
from torchd_server.surfaces.rest.openapi import description_endpoints
from torchd_server.surfaces.rest.predictions import prediction_endpoints
from torchd_server.surfaces.rest.router import ANY, Endpoint, Parameter, Router, Variables, query_of
from torchd_server.surfaces.rest.tokens import TokenRenewal
from torchd_server.surfaces.rest.workflow_routes import workflow_endpoints, workflow_prediction_endpoints
from torchd_server.workflows import Workflows

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def port(endpoints: Iterable[Endpoint], guard: Guard | None = None) -> Handle:
    """What answers on one address: these endpoints and their own description."""
    router = Router(guard)
    router.add(endpoints)
    router.add(description_endpoints(router))
    return router.handle


def inference_endpoints(
    inference: Inference,
    open_inference: OpenInference,
    workflows: Workflows,
    with_kserve: bool = True,
) -> list[Endpoint]:
    """Health, predictions by every path TorchServe has, workflows, and KServe's protocols."""
    return [
        *workflow_prediction_endpoints(workflows),
        *health_endpoints(inference),
        *prediction_endpoints(inference),
        *kserve_inference_endpoints(inference, open_inference),
        *(kserve_endpoints(open_inference) if with_kserve else ()),
    ]


def management_port_endpoints(
    management: Management,
    open_inference: OpenInference,
    workflows: Workflows,
    renewal: TokenRenewal | None = None,
) -> list[Endpoint]:
    """The rules of protos/http.yaml, workflows, KServe's readiness where TorchServe has it, the renewal of tokens."""
    endpoints = [
        *management_endpoints(management),
        *workflow_endpoints(workflows),
        model_v1_endpoint(open_inference, Access.MANAGEMENT),
    ]
    if renewal is not None:
        summary = "A new key for one of the APIs; the old one is good no more."
        what = Parameter("type", "string", "whose key: inference or management", required=True)
        endpoints.append(
            Endpoint((*ANY, "OPTIONS"), "/token", Access.ADMIN, renewal, "renewToken", summary, (what,), gives="")
        )
    return endpoints


def metrics_endpoints(metrics: Metrics, access: Access = Access.OPEN) -> list[Endpoint]:
    """`/metrics` with any method."""

    async def read(request: HttpRequest, variables: Variables) -> HttpResponse:
        names = [value for name, value in query_of(request) if name == "name[]"]
        return answer(200, await metrics.page(names), (("content-type", METRICS_TYPE),))

    summary = "The metrics in Prometheus' text format."
    return [Endpoint((*ANY, "OPTIONS"), "/metrics", access, read, "metrics", summary, gives="text/plain")]
