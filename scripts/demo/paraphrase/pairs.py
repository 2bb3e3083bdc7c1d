"""The sentence pairs of pairs.json, and the similarity from which two sentences count as paraphrases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

PAIRS = Path(__file__).with_name("pairs.json")


class AnswerWrong(RuntimeError):
    """The model's answer is not the one a person would give, or there is none."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sentences, and whether a person calls them paraphrases."""

    seq_0: str
    seq_1: str
    paraphrase: bool

    @property
    def answer(self) -> list[str]:
        """What the model should answer."""
        return ["paraphrase" if self.paraphrase else "not paraphrase"]

    def body(self) -> bytes:
        """The pair as a request body."""
        return json.dumps({"seq_0": self.seq_0, "seq_1": self.seq_1}).encode()


def choosing_pairs() -> list[Pair]:
    """The 20 pairs that the threshold is chosen on."""
    return _read("choosing")


def demo_pairs() -> list[Pair]:
    """The six pairs that the quickstart sends; the threshold has never seen them."""
    return _read("demo")


def load_pair() -> Pair:
    """A pair so long that the model's work outweighs the way to it."""
    return _read("load")[0]


def read_answer(body: bytes) -> list[str]:
    """The answer in a reply, which is one word in a JSON list."""
    try:
        answer: list[str] = json.loads(body)
    except ValueError:
        raise AnswerWrong(f"the model answered {body[:200]!r}, which is not JSON") from None
    return answer


def choose_threshold(similarities: Sequence[float], paraphrase: Sequence[bool]) -> float:
    """The threshold with the most right answers; among equals, the middle of the widest gap."""
    cuts = sorted({-1.0, *similarities, 1.0})

    def quality(gap: tuple[float, float]) -> tuple[int, float]:
        low, high = gap
        right = sum((s >= high) == p for s, p in zip(similarities, paraphrase, strict=True))
        return right, high - low

    low, high = max(pairwise(cuts), key=quality)
    return round((low + high) / 2, 3)


def _read(part: str) -> list[Pair]:
    return [Pair(**row) for row in json.loads(PAIRS.read_text())[part]]
