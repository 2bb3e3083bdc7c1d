"""Chunks of an answer that leave while the handler runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchd_workers.channel import Channel
from torchd_workers.context import Context
from torchd_workers.failures import BadOutput, Cancelled, ResponseTooLarge
from torchd_workers.outputs import reply_of


class ChunkSender:
    """Sends chunks through a channel, each request within its window. `max_bytes` limits one chunk; 0 is no limit.

    With `waits` a handler waits for slow readers; where others run beside it, it must not.
    """

    def __init__(self, channel: Channel, max_bytes: int, waits: bool = True) -> None:
        self._send = channel.send_chunk if waits else channel.offer_chunk
        self._max_bytes = max_bytes

    def send(self, context: Context, index: int, value: Any) -> None:
        """Sends one chunk for the request at `index`, or remembers on it why its stream is over."""
        request = context.running[index]
        if request.over:
            return
        try:
            chunk = reply_of(request.number, value, context.request_processor[index], self._max_bytes, more=True)
        except (BadOutput, ResponseTooLarge) as error:
            request.failure = error
            return
        self._send(request, chunk)


def send_intermediate_predict_response(
    ret: Any, req_id_map: Mapping[int, str], message: str, code: int, context: Context | None = None
) -> None:
    """Sends `ret[idx]` to each request of `req_id_map` as the next chunk of its answer; waits for slow readers.

    In a group of ranks the leader sends and the others do nothing, as in TorchServe.
    Raises Cancelled, which is no Exception, once nobody waits for any answer of the batch; it should pass through.
    """
    if context is None or context.send_chunk is None:
        raise RuntimeError("send_intermediate_predict_response needs the context the handler was called with")
    if context.group is None or context.group.is_leader:
        _check_requests(req_id_map, context)
        for index in req_id_map:
            if code != 200 and context.get_response_status(index)[0] == 200:
                context.set_response_status(code, message, index)
            context.send_chunk(context, index, ret[index])
    if _nobody_waits(context):
        raise Cancelled("nobody waits for the rest of the stream")


def _nobody_waits(context: Context) -> bool:
    """In a group only what every rank knows counts: one that stopped alone would leave the others in a collective."""
    if context.group is None:
        return all(request.over for request in context.running)
    return bool(context.running) and all(map(context.is_cancelled, range(len(context.running))))


def _check_requests(req_id_map: Mapping[int, str], context: Context) -> None:
    """A thread that outlived its batch must not write into another client's answer."""
    for index, request_id in req_id_map.items():
        known = index < len(context.running) and context.get_request_id(index) == request_id
        if not known or context.running[index].finished:
            raise RuntimeError(f"request {request_id!r} has had its last answer; no chunk can follow")
