"""Text to tokens: the two functions that TorchServe took over from TorchText."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

# Tags, and entities such as &amp; or &#39;.
CLEANUP_REGEX = re.compile(r"<.*?>|&(?:[a-z0-9]+|#[0-9]{1,6}|#x[0-9a-f]{1,6});")
_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"'", " '  "),
        (r'"', ""),
        (r"\.", " . "),
        (r"<br />", " "),
        (r",", " , "),
        (r"\(", " ( "),
        (r"\)", " ) "),
        (r"!", " ! "),
        (r"\?", " ? "),
        (r"[;:\s]+", " "),
    ]
]


def ngrams_iterator(token_list: Sequence[str], ngrams: int) -> Iterator[str]:
    """The tokens, then every two in a row, every three, up to `ngrams`, joined by a space."""
    yield from token_list
    for length in range(2, ngrams + 1):
        yield from (" ".join(token_list[at : at + length]) for at in range(len(token_list) - length + 1))


def get_tokenizer(
    tokenizer: str | Callable[[str], list[str]] | None, language: str = "en"
) -> Callable[[str], list[str]]:
    """The function from text to tokens: None splits at spaces, "basic_english" at punctuation too."""
    if tokenizer is None:
        return str.split
    if callable(tokenizer):
        return tokenizer
    if tokenizer != "basic_english":
        raise ValueError(f"torchd has no tokenizer {tokenizer!r}; it has 'basic_english', or give a function")
    if language != "en":
        raise ValueError(f"the tokenizer basic_english knows English only, not {language!r}")
    return _basic_english


def _basic_english(line: str) -> list[str]:
    line = line.lower()
    for pattern, replacement in _RULES:
        line = pattern.sub(replacement, line)
    return line.split()
