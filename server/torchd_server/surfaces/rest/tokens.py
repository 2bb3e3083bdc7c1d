"""`/token`: a new key for who shows the API key, as TorchServe has it."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl

from torchd_server import errors
from torchd_server.surfaces.rest.answers import JSON, answer
from torchd_server.surfaces.rest.http1 import HttpResponse
from torchd_server.surfaces.rest.http1_reader import HttpRequest
from torchd_server.surfaces.token_file import RENEWABLE, TokenFile


class TokenRenewal:
    """The action behind `/token?type=management|inference`; its endpoint asks for Access.ADMIN."""

    def __init__(self, tokens: TokenFile, torchserve_answers: bool) -> None:
        self._tokens = tokens
        self._torchserve_answers = torchserve_answers

    async def __call__(self, request: HttpRequest, variables: Mapping[str, str]) -> HttpResponse:
        """Renews the key; the answer is a line end, the key is in the file."""
        kind = dict(parse_qsl(request.query, max_num_fields=100)).get("type", "")
        if kind not in RENEWABLE:
            if self._torchserve_answers:
                raise errors.InvalidKey("Authentication")
            raise errors.BadRequest(f"parameter type: {kind[:100]!r} will not do; write management or inference")
        self._tokens.renew(RENEWABLE[kind])
        return answer(200, b"\n", (JSON,))
