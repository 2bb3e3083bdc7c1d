"""Several APIs at one address: each is asked in turn until one knows the path."""

from __future__ import annotations

import json
from collections.abc import Sequence

from torchd_server.surfaces.rest.answers import NOT_FOUND
from torchd_server.surfaces.rest.http1 import Handle, HttpResponse
from torchd_server.surfaces.rest.http1_reader import HttpRequest


def combined(handles: Sequence[Handle]) -> Handle:
    """Answers with the first API that knows the path; what all refuse is answered by the one that says most."""
    first, *others = handles

    async def handle(request: HttpRequest) -> HttpResponse:
        response = await first(request)
        for api in others:
            if response.status != 404:
                return response
            other = await api(request)
            if not _is_unknown_path(other):  # "model not found" says more than "no such path"
                response = other
        return response

    return handle


def _is_unknown_path(response: HttpResponse) -> bool:
    try:
        return isinstance(response.body, bytes) and json.loads(response.body).get("message") == NOT_FOUND
    except (ValueError, AttributeError):
        return False
