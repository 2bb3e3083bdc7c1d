"""What a request costs its model, as far as the daemon can tell: it looks at the bytes, it decodes nothing.

A client that knows better says so in the header (gRPC: metadata) `torchd-cost`, in the model's unit.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable

from torchd_protos.frames import Buffer, Call
from torchd_server.batching.image_size import pixels_of

HEADER = "torchd-cost"
# Whoever says more is taken at this: sums and squares of costs must stay numbers.
SAID_AT_MOST = 2.0**32
# What a text has in tokens, fitted to WordPiece on technical English (correlation 0.99; 0.95 by bytes alone).
TOKENS_PER_WORD = 0.65
TOKENS_PER_MARK = 0.93
TOKENS_PER_BYTE = 0.066
# The marks of {"name": "text"}, less the two tokens that stand around every text.
TOKENS_OF_JSON = 4
# Marks are tokens of their own: punctuation, the characters of Chinese and its like by their first byte, and their
# JSON escapes by the backslash.
_MARKS = string.punctuation.encode() + bytes(range(0xE0, 0xF5))
# Of a longer text only the beginning is looked at.
LOOKED_AT_BYTES = 16 * 1024


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
            return min(said, SAID_AT_MOST) if 0 <= said < math.inf else None
    return None


def _tokens(body: Buffer) -> float:
    """By its words, its marks and its bytes; nothing is parsed, and tokens between commas count as such too."""
    text = bytes(body[:LOOKED_AT_BYTES])
    if not text:
        return 0.0
    marks = len(text) - len(text.translate(None, _MARKS))
    tokens = TOKENS_PER_WORD * (text.count(b" ") + 1) + TOKENS_PER_MARK * marks + TOKENS_PER_BYTE * len(text)
    return tokens * len(body) / len(text) - TOKENS_OF_JSON * text.startswith(b"{")


def _pixels(body: Buffer) -> float:
    """As the image's header has it. What is no image that we know counts by its bytes."""
    return float(pixels_of(body) or len(body))


def _bytes(body: Buffer) -> float:
    return float(len(body))


KEYS: dict[str, Callable[[Buffer], float]] = {"tokens": _tokens, "pixels": _pixels, "bytes": _bytes}
