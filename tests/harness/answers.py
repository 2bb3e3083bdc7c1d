"""What a REST port answers to one request, without a socket."""

import asyncio

from torchd_server.surfaces.rest.http1 import Handle, HttpResponse, Pending
from torchd_server.surfaces.rest.http1_reader import HttpRequest


async def answered(handle: Handle, request: HttpRequest) -> HttpResponse:
    """The answer, whichever way it comes."""
    answer = handle(request)
    if isinstance(answer, HttpResponse):
        return answer
    if isinstance(answer, Pending):
        told: asyncio.Future[HttpResponse] = asyncio.get_running_loop().create_future()
        answer.when_answered(told.set_result)
        return await told
    return await answer
