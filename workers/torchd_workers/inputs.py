"""What a handler gets for one request: a row of its parts, and its headers."""

from __future__ import annotations

import logging
from json import JSONDecoder, dumps
from typing import Any

from torchd_protos.frames import Buffer, Call, Part
from torchd_protos.tensors import CONTENT_TYPE as TENSORS
from torchd_workers.headers import Headers
from torchd_workers.tensors import request_of

logger = logging.getLogger(__name__)

_decode_json = JSONDecoder().decode


def row_of(call: Call, decode: bool) -> dict[str, Any]:
    """The parts by name, each with bytes of its own; the last of a name wins. `decode` reads JSON and text parts."""
    return {part.name: _value_of(part, decode) for part in call.parts}


def headers_of(call: Call) -> Headers:
    """The request's headers, and under each part's name its content type; a header wins over a part of its name."""
    pairs: list[tuple[str, Any]] = [(part.name, {"content-type": _seen_type(part)}) for part in call.parts]
    pairs += [(header.name, header.value) for header in call.headers]
    return Headers(pairs)


def _seen_type(part: Part) -> str:
    """Tensors reach a handler as what a JSON body would have given it."""
    return "application/json" if part.content_type == TENSORS else part.content_type


def _value_of(part: Part, decode: bool) -> Any:
    media_type = part.content_type.lower()
    if media_type == TENSORS:
        return _tensors_of(part, decode)
    if not decode or not (media_type == "application/json" or media_type.startswith("text")):
        return _owned(part.body)
    try:
        text = str(part.body, "utf-8")
        return text if media_type.startswith("text") else _decode_json(text)
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits is a plain ValueError
        logger.warning(
            "part %r is not the %s it says it is; the handler gets its bytes: %s", part.name, media_type, error
        )
        return bytearray(part.body)


def _owned(body: Buffer) -> bytearray:
    """What the handler may keep and change: a large body was received into memory of its own."""
    return body if isinstance(body, bytearray) else bytearray(body)


def _tensors_of(part: Part, decode: bool) -> Any:
    try:
        request = request_of(part.body)
    except ValueError as error:
        logger.warning("part %r does not hold the tensors it says; the handler gets its bytes: %s", part.name, error)
        return bytearray(part.body)
    return request if decode else bytearray(dumps(request).encode())
