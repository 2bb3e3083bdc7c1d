"""Bodies to parts, by TorchServe's rules and within limits."""

import time
from contextlib import suppress
from urllib.parse import quote_from_bytes, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchd_server.surfaces.rest.bodies import BodyInvalid, BodyLimits, parts_of

LIMITS = BodyLimits()
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=frontier"


def multipart(*parts: bytes, end: bytes = b"--frontier--\r\n") -> bytes:
    return b"".join(b"--frontier\r\n" + part + b"\r\n" for part in parts) + end


def field(name: str, value: bytes) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value


def file(name: str, content_type: str, value: bytes) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"; filename="../../m"\r\n'
    return f"{disposition}Content-Type: {content_type}\r\n\r\n".encode() + value


@pytest.mark.parametrize(
    ("content_type", "mime"),
    [
        (None, ""),
        ("", ""),
        ("application/json", "application/json"),
        ("Application/JSON; charset=utf-8", "application/json"),
        ("text/plain ;x=y", "text/plain"),
        ("multipart/mixed; boundary=a", "multipart/mixed"),
    ],
)
def test_any_other_body_is_one_part_with_its_mime_type(content_type: str | None, mime: str) -> None:
    body = b'{"not": parsed'
    assert parts_of(content_type, body, LIMITS) == [("body", mime, body)]


def test_a_raw_body_is_not_copied() -> None:
    body = b"x" * 1000
    assert parts_of("application/octet-stream", body, LIMITS)[0][2] is body


def test_a_form_becomes_one_part_a_field() -> None:
    body = b"a=1&b=two+words&c=%C3%A9%3D%26&d&=e&&a%20b=%0D%0A=x_y"
    assert parts_of(FORM, body, LIMITS) == [
        ("a", "", b"1"),
        ("b", "", b"two words"),
        ("c", "", "é=&".encode()),
        ("d", "", b""),
        ("", "", b"e"),
        ("a b", "", b"\r\n=x_y"),
    ]


def test_an_empty_form_has_no_parts() -> None:
    assert parts_of(FORM, b"", LIMITS) == []


def test_curls_default_content_type_gives_json_as_a_field_name() -> None:
    assert parts_of(FORM, b'{"a": 1}', LIMITS) == [('{"a": 1}', "", b"")]


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.binary(), max_size=5))
def test_a_form_comes_back_as_it_was_encoded(fields: dict[str, bytes]) -> None:
    body = urlencode(fields).encode()
    assert parts_of(FORM, body, LIMITS) == [(name, "", value) for name, value in fields.items()]
    strict = "&".join(
        f"{quote_from_bytes(k.encode(), safe='')}={quote_from_bytes(v, safe='')}" for k, v in fields.items()
    )
    assert parts_of(FORM, strict.encode(), LIMITS) == [(name, "", value) for name, value in fields.items()]


@pytest.mark.parametrize("bad", [b"a=%", b"a=%4", b"a=%zz", b"%4x=1", b"a=%%41", b"a=%+1"])
def test_a_percent_error_in_a_form_is_refused(bad: bytes) -> None:
    """S33"""
    with pytest.raises(BodyInvalid, match="write '%25'"):
        parts_of(FORM, bad, LIMITS)


@pytest.mark.parametrize(("count", "fits"), [(999, True), (1000, True), (1001, False)])
def test_a_form_has_at_most_a_thousand_fields(count: int, fits: bool) -> None:
    """S33"""
    body = b"&".join(b"f%d=1" % i for i in range(count))
    if fits:
        assert len(parts_of(FORM, body, LIMITS)) == count
    else:
        with pytest.raises(BodyInvalid, match="more than 1000 fields"):
            parts_of(FORM, body, LIMITS)


def test_a_field_name_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(BodyInvalid, match="not UTF-8"):
        parts_of(FORM, b"%ff=1", LIMITS)


def test_a_multipart_file_keeps_its_content_type_and_a_text_field_has_none() -> None:
    body = multipart(
        file("data", "Image/PNG; charset=x", b"\x89PNG\r\n\r\n"), field("text", b"hello"), field("empty", b"")
    )
    assert parts_of(MULTIPART, body, LIMITS) == [
        ("data", "image/png", b"\x89PNG\r\n\r\n"),
        ("text", "", b"hello"),
        ("empty", "", b""),
    ]


def test_a_multipart_file_without_a_content_type_is_an_octet_stream() -> None:
    part = b'Content-Disposition: form-data; name="a"; filename=""\r\n\r\nx'
    assert parts_of(MULTIPART, multipart(part), LIMITS) == [("a", "application/octet-stream", b"x")]


def test_of_fields_with_one_name_the_last_wins() -> None:
    assert parts_of(MULTIPART, multipart(field("a", b"1"), field("b", b"2"), field("a", b"3")), LIMITS) == [
        ("a", "", b"3"),
        ("b", "", b"2"),
    ]
    assert parts_of(FORM, b"a=1&b=2&a=3", LIMITS) == [("a", "", b"3"), ("b", "", b"2")]


def test_a_quoted_boundary_and_a_name_in_utf8_are_understood() -> None:
    body = multipart(field("größe", b"1"))
    assert parts_of('multipart/form-data; boundary="frontier"', body, LIMITS) == [("größe", "", b"1")]


@given(st.lists(st.lists(st.sampled_from([b"\r", b"\n", b"--", b"frontier", b"\r\n--", b"x", b"\r\n--frontie"]))))
def test_bytes_that_look_like_a_boundary_stay_in_their_part(pieces: list[list[bytes]]) -> None:
    values = [value for value in map(b"".join, pieces) if b"--frontier" not in value]
    body = multipart(*(field(f"f{i}", value) for i, value in enumerate(values)), end=b"--frontier--")
    if not values:
        body = b"--frontier--"
    assert parts_of(MULTIPART, body, LIMITS) == [(f"f{i}", "", value) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("content_type", "body", "why"),
    [
        ("multipart/form-data", b"", "needs a boundary"),
        ("multipart/form-data; boundary=", b"", "needs a boundary"),
        ("multipart/form-data; boundary=" + "-" * 71, b"", "1 to 70 bytes"),
        ("multipart/form-data; boundary=" + "-" * 100_000, b"", "1 to 70 bytes"),
        ("multipart/form-data; boundary=a" + ";" * 17, b"", "more than 16 parameters"),
        (MULTIPART, b"", "no end"),
        (MULTIPART, b"no boundary at all", "malformed"),
        (MULTIPART, multipart(field("a", b"1"), end=b""), "no end"),
        (MULTIPART, multipart(field("a", b"1"))[:-4], "no end"),
        (MULTIPART, multipart(b"\r\n1"), "part 1 has no name"),
        (MULTIPART, multipart(field("", b"1")), "part 1 has no name"),
        (MULTIPART, multipart(b'Content-Disposition: attachment; name="a"\r\n\r\n1'), "part 1 has no name"),
        (MULTIPART, multipart(b"bad header\r\n\r\n1"), "malformed"),
        (MULTIPART, multipart(b"X: " + b"x" * 1_000_000 + b"\r\n\r\n1"), "header size"),
        (MULTIPART, multipart(b"X: 1\r\n" * 9 + b"\r\n1"), "header count"),
        (MULTIPART, multipart(b"Content-Disposition: form-data" + b";" * 100 + b"\r\n\r\n"), "parameters"),
        (MULTIPART, multipart(file("a", "multipart/mixed; boundary=b", b"--b--")), "of its own"),
        (MULTIPART, multipart(b'Content-Disposition: form-data; name="\xff"\r\n\r\n1'), "not UTF-8"),
    ],
)
def test_a_malformed_multipart_body_is_refused_with_the_reason(content_type: str, body: bytes, why: str) -> None:
    """S32"""
    with pytest.raises(BodyInvalid, match=why):
        parts_of(content_type, body, LIMITS)


@pytest.mark.parametrize(("count", "fits"), [(999, True), (1000, True), (1001, False), (100_000, False)])
def test_a_multipart_body_has_at_most_a_thousand_parts(count: int, fits: bool) -> None:
    """S32"""
    body = multipart(*[field("a", b"")] * count)
    if fits:
        assert parts_of(MULTIPART, body, LIMITS) == [("a", "", b"")]
    else:
        with pytest.raises(BodyInvalid, match="more than 1000 parts"):
            parts_of(MULTIPART, body, LIMITS)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (FORM, b"%41" * 2_000_000),
        (FORM, b"a=1&" * 1_000_000),
        (MULTIPART, b"--frontier\r\n" * 500_000),
        (MULTIPART, b"--frontier\r\n\r\n" + b"\r\n--frontie" * 500_000),
        (MULTIPART, multipart(*[b"Content-Disposition: form-data" + b";" * 16 + b"\r\n" * 2] * 1000)),
    ],
    ids=["escapes", "fields", "boundaries", "near-boundaries", "parameters"],
)
def test_hostile_bodies_cost_little_time(content_type: str, body: bytes) -> None:
    """S32, S33: the table's 200 ms, with room for a slow machine; quadratic work would take minutes."""
    began = time.process_time()
    with suppress(BodyInvalid):
        parts_of(content_type, body, LIMITS)
    assert time.process_time() - began < 2.0


@given(st.binary(), st.sampled_from([FORM, MULTIPART, "text/plain"]))
def test_arbitrary_bytes_give_parts_or_a_refusal(body: bytes, content_type: str) -> None:
    with suppress(BodyInvalid):
        assert all(isinstance(value, bytes) for _, _, value in parts_of(content_type, body, LIMITS))
