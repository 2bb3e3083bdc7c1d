"""What a request costs its model, as far as the daemon can tell: it looks at the bytes, it decodes nothing.

A client that knows better says so in the header (gRPC: metadata) `torchd-cost`, in the model's unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torchd_protos.frames import Buffer, Call
from torchd_server.batching.image_size import pixels_of

HEADER = "torchd-cost"
# What a token has of English text, in bytes and in words, as WordPiece cuts it.
BYTES_PER_TOKEN = 4.5
TOKENS_PER_WORD = 1.3
# Of a longer text only the beginning is looked at.
LOOKED_AT_BYTES = 64 * 1024


def cost_by(key: str) -> Callable[[Call], float]:
    """What a call costs by this key of KEYS: as its client says, else estimated."""
    estimate = KEYS[key]

    def cost(call: Call) -> float:
        said = _said(call)
        return said if said is not None else sum(estimate(part.body) for part in call.parts)

    return cost


def _said(call: Call) -> float | None:
    """What the client says; None if it says nothing, or nothing sensible."""
    for header in call.headers:
        if header.name.lower() == HEADER:
            try:
                said = float(header.value)
            except ValueError:
                return None
            return said if 0 <= said < math.inf else None
    return None


def _tokens(body: Buffer) -> float:
    """Half by its bytes, half by its words: text of long words has more tokens than words, JSON more bytes."""
    by_bytes = len(body) / BYTES_PER_TOKEN
    text = bytes(body[:LOOKED_AT_BYTES])
    spaces = text.count(b" ")
    if not spaces:  # Chinese, say, or numbers between commas
        return by_bytes
    return (by_bytes + TOKENS_PER_WORD * (spaces + 1) * len(body) / len(text)) / 2


def _pixels(body: Buffer) -> float:
    """As the image's header has it. What is no image that we know counts by its bytes."""
    return float(pixels_of(body) or len(body))


def _bytes(body: Buffer) -> float:
    return float(len(body))


KEYS: dict[str, Callable[[Buffer], float]] = {"tokens": _tokens, "pixels": _pixels, "bytes": _bytes}
