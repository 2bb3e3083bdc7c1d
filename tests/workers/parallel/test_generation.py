"""The parts of writing a text that need no ranks: what is asked, how a token is chosen, pieces of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from harness.byte_models import byte_tokenizer

from torchd_workers.handlers.parallel.asked import asked_by
from torchd_workers.handlers.parallel.pieces import Pieces
from torchd_workers.handlers.parallel.sampling import Chooser, Sampling
from torchd_workers.handlers.rows import BadInput


def test_pieces_put_together_are_the_text_though_characters_take_several_tokens() -> None:
    """No piece ends inside a character."""
    tokenizer = byte_tokenizer()
    pieces = Pieces(tokenizer)
    text = "naïve – 世界 🌍!"
    said = [pieces.take(token) for token in tokenizer(text)["input_ids"]]
    assert "".join(said) + pieces.end() == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(said)
    assert "🌍" in said


def test_the_choice_is_among_the_likeliest() -> None:
    """top_k and top_p narrow it; temperature 0 and top_p 0 leave the first."""
    logits = torch.tensor([1.0, 5.0, 4.0, -2.0])
    cpu = torch.device("cpu")
    assert Chooser(Sampling(), cpu).next(logits) == 1
    assert Chooser(Sampling(temperature=5.0, top_p=0.0), cpu).next(logits) == 1
    chooser = Chooser(Sampling(temperature=5.0, top_k=2, seed=1), cpu)
    assert {chooser.next(logits) for _ in range(50)} == {1, 2}
    chooser = Chooser(Sampling(temperature=1.0, top_p=0.75, seed=1), cpu)
    assert {chooser.next(logits) for _ in range(50)} == {1, 2}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"temperature": "hot"}, "temperature must be a number from 0 to 100, not 'hot'"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 2}, "top_p must be a number from 0 to 1"),
        ({"seed": 1.5}, "seed must be a whole number"),
    ],
)
def test_what_cannot_be_sampled_is_refused(asked: Mapping[str, Any], said: str) -> None:
    """The message names the option, its range and what was asked."""
    with pytest.raises(BadInput, match=said):
        Sampling().changed_by(asked)


def test_a_body_is_a_text_or_json_with_one() -> None:
    """As bytes, as text, as an object; brackets alone make no JSON."""
    assert asked_by({"body": bytearray(b"hello")}).text == "hello"
    assert asked_by({"data": "{not json}"}).text == "{not json}"
    assert asked_by({"body": b'{"prompt": "hi", "stream": true}'}).streams
    asked = asked_by({"body": {"inputs": "hi", "parameters": {"seed": 1}, "top_k": 3}})
    assert (asked.text, asked.options) == ("hi", {"seed": 1, "top_k": 3})
    for body in (b"\xff", {"prompt": 3}, {"question": "?"}, ["a"], {"inputs": "a", "parameters": 3}):
        with pytest.raises(BadInput):
            asked_by({"body": body})
    with pytest.raises(BadInput, match="stream must be true or false"):
        assert asked_by({"body": {"prompt": "a", "stream": "yes"}}).streams
