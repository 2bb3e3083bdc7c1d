"""The text of tokens, as they come: pieces that put together are the text of all of them."""

from __future__ import annotations

from typing import Any

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Pieces:
    """Turns the tokens of one text into pieces. A token may end inside a character, or change with its neighbour."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        # Up to `_told` everything is out; decoding begins some tokens before, for what depends on the neighbour.
        self._begin = 0
        self._told = 0

    def take(self, token: int) -> str:
        """What can be said after this token; "" while a character is incomplete."""
        self._tokens.append(token)
        return self._new(is_end=False)

    def end(self) -> str:
        """What was held back."""
        return self._new(is_end=True)

    def _new(self, is_end: bool) -> str:
        before = self._decode(self._begin, self._told)
        now = self._decode(self._begin, len(self._tokens))
        if len(now) <= len(before) or (now.endswith(_INCOMPLETE) and not is_end):
            return ""
        self._begin, self._told = self._told, len(self._tokens)
        return now[len(before) :]

    def _decode(self, begin: int, end: int) -> str:
        text: str = self._tokenizer.decode(self._tokens[begin:end], skip_special_tokens=True)
        return text
