"""What `optimize:` did to a model, as a worker says it and as the Management service tells it."""

from __future__ import annotations

from json import loads

from google.protobuf.json_format import ParseDict, ParseError

from torchd_protos import management_pb2 as pb
from torchd_server.torchserve.words import UNREADABLE


def message(optimization_json: str) -> pb.OptimizationDescription:
    """The typed form. The worker's document has the message's own names; what a later one adds is left out."""
    try:
        told = loads(optimization_json)
        if not isinstance(told, dict):
            raise ValueError("a report is an object")
        return ParseDict(told, pb.OptimizationDescription(), ignore_unknown_fields=True)
    except (ParseError, ValueError, RecursionError):  # a worker runs user code, which may have said it
        return pb.OptimizationDescription(unchecked=UNREADABLE)
