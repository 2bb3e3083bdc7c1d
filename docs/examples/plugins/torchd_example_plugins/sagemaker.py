"""`GET /execution-parameters`, which SageMaker's batch transform asks for; TorchServe's plug-in had it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torchd_server.plugins import Served
from torchd_server.surfaces.auth import Access
from torchd_server.surfaces.rest.answers import document
from torchd_server.surfaces.rest.http1 import HttpResponse
from torchd_server.surfaces.rest.http1_reader import HttpRequest
from torchd_server.surfaces.rest.router import Endpoint, Variables


def endpoints(served: Served) -> Mapping[str, Sequence[Endpoint]]:
    """One endpoint on the inference port."""

    async def parameters(request: HttpRequest, variables: Variables) -> HttpResponse:
        names = [model.name for model in served.management.list(100, 0).models]
        workers = sum(len(version.workers) for name in names for version in served.management.describe(name))
        told = {"MaxConcurrentTransforms": max(1, workers), "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 6}
        return document(200, told)

    summary = "How a SageMaker batch transform should call this server."
    row = Endpoint(("GET",), "/execution-parameters", Access.OPEN, parameters, "executionParameters", summary)
    return {"inference": [row]}
