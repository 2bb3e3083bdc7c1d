"""What the daemon makes of a request's bytes, and of what its client says of them."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from torchd_protos.frames import Call, Header, Part
from torchd_server.batching.costs import KEYS, SAID_AT_MOST, cost_by
from torchd_server.batching.image_size import PIXELS_AT_MOST, pixels_of


def asked(*bodies: bytes | memoryview, **headers: str) -> Call:
    named = [Header(name.replace("_", "-"), value) for name, value in headers.items()]
    return Call(parts=[Part("body", "", body) for body in bodies], headers=named)


def tokens(text: str) -> float:
    return cost_by("tokens")(asked(json.dumps({"text": text}).encode()))


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("one two three", 3, 7),
        ("The quick brown fox jumps over the lazy dog. " * 3, 30, 50),
        ("a, b; (c) - d: e! f?", 12, 20),
        ("我们今天去图书馆看书", 8, 20),
    ],
)
def test_tokens_are_estimated_as_wordpiece_cuts_text(text: str, least: int, most: int) -> None:
    assert least <= tokens(text) <= most


def test_chinese_counts_by_its_characters_escaped_or_not() -> None:
    text = "我们今天去图书馆看书" * 10
    raw = cost_by("tokens")(asked(json.dumps({"text": text}, ensure_ascii=False).encode()))
    assert raw == pytest.approx(tokens(text), rel=0.5)


def test_tokens_that_came_as_numbers_count_as_such() -> None:
    numbers = cost_by("tokens")(asked(json.dumps({"input_ids": [[2000 + each for each in range(100)]]}).encode()))
    assert 80 <= numbers <= 300


def test_of_a_long_text_the_beginning_is_looked_at_and_all_of_it_counts() -> None:
    page = "many words of a long text, and more of them. " * 2000
    assert tokens(page) == pytest.approx(2000 * tokens("many words of a long text, and more of them. "), rel=0.5)


def test_bytes_are_the_bodies_of_all_parts() -> None:
    assert cost_by("bytes")(asked(b"12345", memoryview(b"678"))) == 8


def image(kind: str, width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_pixels_stand_in_the_header(kind: str) -> None:
    body = image(kind, 321, 123)
    assert cost_by("pixels")(asked(memoryview(body))) == 321 * 123


def test_a_lossy_webp_and_one_with_extensions_have_their_pixels_too() -> None:
    file = io.BytesIO()
    Image.new("RGB", (321, 123)).save(file, "WEBP")
    assert pixels_of(file.getvalue()) == 321 * 123
    file = io.BytesIO()
    Image.new("RGBA", (321, 123), (1, 2, 3, 4)).save(file, "WEBP", exif=b"Exif\0\0")
    assert pixels_of(file.getvalue()) == 321 * 123


def test_a_jpeg_has_its_size_behind_its_profiles() -> None:
    file = io.BytesIO()
    Image.new("RGB", (640, 480)).save(file, "JPEG", exif=b"Exif\0\0" + bytes(30_000), progressive=True)
    assert pixels_of(file.getvalue()) == 640 * 480


def test_what_is_no_image_counts_by_its_bytes() -> None:
    assert cost_by("pixels")(asked(b"no image at all")) == 15
    assert cost_by("pixels")(asked(b"\xff\xd8")) == 2


def test_a_header_that_claims_more_than_any_image_has_is_not_believed() -> None:
    liar = bytearray(image("PNG", 1, 1))
    liar[16:24] = b"\xff" * 8
    assert pixels_of(liar) == PIXELS_AT_MOST


@given(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8", b"RIFF\0\0\0\0WEBPVP8X", b""]), st.binary())
def test_no_bytes_raise(start: bytes, rest: bytes) -> None:
    for key in KEYS:
        cost = cost_by(key)(asked(start + rest))
        assert -10 < cost < 2**40


@pytest.mark.parametrize("key", KEYS)
def test_a_client_that_knows_says_it(key: str) -> None:
    assert cost_by(key)(asked(b"12345", torchd_cost="37.5")) == 37.5
    assert cost_by(key)(asked(b"12345", Torchd_Cost="37.5")) == 37.5


@pytest.mark.parametrize("nonsense", ["", "many", "-1", "nan", "inf", "1e999"])
def test_what_is_no_cost_is_not_heard(nonsense: str) -> None:
    assert cost_by("bytes")(asked(b"12345", torchd_cost=nonsense)) == 5


def test_what_a_client_claims_has_a_bound() -> None:
    assert cost_by("bytes")(asked(b"12345", torchd_cost="1e308")) == SAID_AT_MOST
