"""Request bodies become the named parts a handler sees, by TorchServe's rules."""

from __future__ import annotations

import re
from binascii import a2b_qp
from dataclasses import dataclass
from functools import lru_cache

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# Splitting a header into parameters is quadratic in their number; no honest header has this many.
_MAX_PARAMETERS = 16


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How many parts a form may have, and how long the words around them may be (S32, S33)."""

    fields: int = 1000
    boundary_bytes: int = 70  # RFC 2046 allows no more
    part_header_bytes: int = 8 * 1024  # each; the name of the field stands in one
    part_headers: int = 8


class BodyInvalid(ValueError):
    """The body is not what its Content-Type says, or goes past a limit."""


Body = bytes | bytearray
Part = tuple[str, str, Body]


def parts_of(content_type: str | None, body: Body, limits: BodyLimits) -> list[Part]:
    """Split a body into (name, content type, bytes): the fields of a form, else one part `body` passed through raw.

    Of fields with one name the last wins, as in TorchServe; text fields have the content type "".
    """
    mime = _mime(content_type or "")
    if mime == "multipart/form-data":
        return _last_of_each(_multipart(content_type or "", body, limits))
    if mime == "application/x-www-form-urlencoded":
        return _last_of_each(_urlencoded(body, limits))
    return [("body", mime, body)]


@lru_cache(maxsize=64)
def _mime(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _last_of_each(parts: list[Part]) -> list[Part]:
    return list({part[0]: part for part in parts}.values())


def _urlencoded(body: Body, limits: BodyLimits) -> list[Part]:
    if not body:
        return []
    if body.count(b"&") >= limits.fields:
        raise BodyInvalid(f"the form has more than {limits.fields} fields; send fewer, or the data as the body itself")
    bad = _BAD_ESCAPE.search(body)
    if bad is not None:
        raise BodyInvalid(f"the form has a '%' without two hex digits at byte {bad.start()}; write '%25' for a '%'")
    body = bytes(body)
    pairs = (field.partition(b"=") for field in body.split(b"&") if field)
    return [(_name(_unquote(name)), "", _unquote(value)) for name, _, value in pairs]


def _unquote(quoted: bytes) -> bytes:
    spaced = quoted.replace(b"+", b" ")
    if b"%" not in spaced:
        return spaced
    # Quoted-printable is the same code with '=' for '%', and its decoder is in C: urllib's takes a second for the
    # 6 MB of escapes that a client may send to this event loop.
    return a2b_qp(spaced.replace(b"=", b"=3D").replace(b"%", b"="))


def _name(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BodyInvalid(f"the field name {raw[:100]!r} is not UTF-8; rename the field") from None


def _multipart(content_type: str, body: Body, limits: BodyLimits) -> list[Part]:
    boundary = _options(content_type.encode("latin-1"))[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= limits.boundary_bytes:
        raise BodyInvalid(f"multipart/form-data needs a boundary of 1 to {limits.boundary_bytes} bytes")
    form = _Form(body, limits)
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": form.begin,
            "on_header_field": form.header_name,
            "on_header_value": form.header_value,
            "on_part_data": form.data,
            "on_part_end": form.end,
            "on_end": form.finish,
        },
        max_header_count=limits.part_headers,
        max_header_size=limits.part_header_bytes,
    )
    try:
        parser.write(body)  # type: ignore[arg-type]  # any buffer will do
    except FormParserError as error:
        raise BodyInvalid(f"the multipart body is malformed: {error}") from None
    if not form.is_finished:
        raise BodyInvalid(f"the multipart body has no end: its last line must be '--{boundary.decode('latin-1')}--'")
    return form.parts


class _Form:
    """Collects the parts of one multipart body; keeps positions, so that the data of a part is copied once."""

    def __init__(self, body: Body, limits: BodyLimits) -> None:
        self.parts: list[Part] = []
        self.is_finished = False
        self._body = body
        self._limits = limits
        self._header = ""
        self._headers: dict[str, bytes] = {}
        self._start: int | None = None
        self._stop = 0

    def begin(self) -> None:
        if len(self.parts) >= self._limits.fields:
            raise BodyInvalid(f"the multipart body has more than {self._limits.fields} parts; send fewer")
        self._headers = {}
        self._start, self._stop = None, 0

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header = data[start:end].decode("latin-1").lower()

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._headers[self._header] = data[start:end]

    def data(self, data: bytes, start: int, end: int) -> None:
        # The body is written to the parser at once, so the pieces of a part follow each other in it.
        if self._start is None:
            self._start = start
        self._stop = end

    def end(self) -> None:
        disposition, options = _options(self._headers.get("content-disposition", b""))
        if disposition != b"form-data" or not options.get(b"name"):
            raise BodyInvalid(
                f'part {len(self.parts) + 1} has no name; it needs Content-Disposition: form-data; name="..."'
            )
        name = _name(options[b"name"])
        content_type = self._content_type() if b"filename" in options else ""
        if content_type.startswith("multipart/"):
            raise BodyInvalid(f"the part {name[:100]!r} is a {content_type[:100]} of its own; send its parts as fields")
        self.parts.append((name, content_type, self._body[self._start or 0 : self._stop]))

    def finish(self) -> None:
        self.is_finished = True

    def _content_type(self) -> str:
        raw = self._headers.get("content-type", b"application/octet-stream")
        return raw.partition(b";")[0].strip().lower().decode("latin-1")


def _options(header: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    if header.count(b";") > _MAX_PARAMETERS:
        raise BodyInvalid(f"a header of the body has more than {_MAX_PARAMETERS} parameters: {header[:100]!r}...")
    return parse_options_header(header)
