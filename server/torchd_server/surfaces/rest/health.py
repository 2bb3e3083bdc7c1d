"""The endpoints that say how the daemon is: TorchServe's ping, and the two probes of Kubernetes."""

from __future__ import annotations

from torchd_server.inference import Inference
from torchd_server.surfaces.auth import Access
from torchd_server.surfaces.rest.answers import document
from torchd_server.surfaces.rest.http1 import HttpResponse
from torchd_server.surfaces.rest.http1_reader import HttpRequest
from torchd_server.surfaces.rest.router import ANY, Endpoint, Variables


def health_endpoints(inference: Inference) -> list[Endpoint]:
    """`/ping`, `/livez`, `/readyz`."""

    async def ping(request: HttpRequest, variables: Variables) -> HttpResponse:
        healthy = inference.is_healthy()
        return document(200 if healthy else 500, {"status": "Healthy" if healthy else "Unhealthy"})

    async def live(request: HttpRequest, variables: Variables) -> HttpResponse:
        return document(200, {"live": True})

    async def ready(request: HttpRequest, variables: Variables) -> HttpResponse:
        is_ready = inference.is_healthy()
        return document(200 if is_ready else 503, {"ready": is_ready})

    return [
        Endpoint(
            (*ANY, "OPTIONS"),
            "/ping",
            Access.INFERENCE,
            ping,
            "ping",
            "Whether every model has its workers: 200 or 500.",
        ),
        Endpoint(("GET", "HEAD"), "/livez", Access.OPEN, live, "livez", "200 while the daemon runs."),
        Endpoint(
            ("GET", "HEAD"),
            "/readyz",
            Access.OPEN,
            ready,
            "readyz",
            "200 while every model that wants workers has them and the daemon is not draining, else 503.",
        ),
    ]
