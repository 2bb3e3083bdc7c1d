"""Ids by which clients, handlers and logs name a request: UUIDs of version 4, as TorchServe's are."""

from __future__ import annotations

import os

# Random bytes are fetched for so many ids at once: the call into the kernel costs more than all the rest.
_IDS = 256
_HEX = 32
# The two bits that every such id has in this place.
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


class _Source:
    """Hexadecimal digits not used yet."""

    def __init__(self) -> None:
        self.digits = ""
        self.at = 0

    def next(self) -> str:
        """One id."""
        if self.at >= len(self.digits):
            self.digits, self.at = os.urandom(_IDS * _HEX // 2).hex(), 0
        at = self.at
        self.at = at + _HEX
        text = self.digits[at : at + _HEX]
        return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{_VARIANT[text[16]]}{text[17:20]}-{text[20:]}"


new_request_id = _Source().next
