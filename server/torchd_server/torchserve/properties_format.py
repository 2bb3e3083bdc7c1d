"""Java's .properties syntax (java.util.Properties): reading it with line numbers, and writing it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}
_WRITTEN = {value: f"\\{letter}" for letter, value in _ESCAPES.items()} | {letter: f"\\{letter}" for letter in "\\=:#!"}
# Java reads and writes the file as Latin-1; anything else is written as \uXXXX.
ENCODING = "latin-1"


@dataclass(frozen=True, slots=True)
class Property:
    """One line of a file: continuation lines count for the first."""

    key: str
    value: str
    line: int


def read(text: str) -> list[Property]:
    """Every property in order, with continuations, escapes, and `=`, `:` or a blank as separator."""
    found = []
    for number, line in _logical_lines(text):
        match = re.match(r"((?:\\.|[^\\=:\s])*)\s*[=:]?\s*(.*)", line, re.DOTALL)
        if match:
            found.append(Property(_unescape(match[1]), _unescape(match[2]), number))
    return found


def parse(text: str) -> dict[str, str]:
    """The properties of a text; of a key given twice the last value holds."""
    return {found.key: found.value for found in read(text)}


def write(properties: Mapping[str, str]) -> str:
    """A text that `parse`, and Java, read back as the same properties; one line each."""
    return "".join(f"{_escape(key, is_key=True)}={_escape(value)}\n" for key, value in properties.items())


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    line, first = "", 0
    for number, physical in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        part = physical.lstrip(" \t\f")
        if not line and (not part or part[0] in "#!"):
            continue
        first = first if line else number
        line += part
        if (len(line) - len(line.rstrip("\\"))) % 2:
            line = line[:-1]
            continue
        yield first, line
        line = ""
    if line:
        yield first, line


def _unescape(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        escaped = match[1]
        return chr(int(escaped[1:], 16)) if len(escaped) == 5 else _ESCAPES.get(escaped, escaped)

    found = re.sub(r"\\(u[0-9a-fA-F]{4}|.)", character, text, flags=re.DOTALL)
    if any("\ud800" <= letter <= "\udfff" for letter in found):  # halves of one character
        return found.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return found


def _escape(text: str, is_key: bool = False) -> str:
    written = "".join(_WRITTEN.get(letter) or _plain(letter) for letter in text)
    if is_key:  # a blank would end it
        return written.replace(" ", "\\ ")
    return f"\\{written}" if written.startswith(" ") else written


def _plain(letter: str) -> str:
    if " " <= letter <= "~":
        return letter
    units = letter.encode("utf-16-be")  # above U+FFFF two halves, as Java counts
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
