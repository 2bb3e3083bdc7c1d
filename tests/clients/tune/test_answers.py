"""Answers that may differ in the last digits and in nothing else."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchd_clients.tune.answers import difference


def dumped(*documents: Any) -> list[bytes]:
    return [json.dumps(document).encode() for document in documents]


def test_a_label_that_changes_is_a_difference() -> None:
    found = difference(dumped(["paraphrase"], ["not paraphrase"]), dumped(["paraphrase"], ["paraphrase"]))
    assert found == "answer 2 at 0 is 'paraphrase' in place of 'not paraphrase'"


def test_numbers_may_be_off_by_a_share_of_their_spread() -> None:
    reference = dumped([0.0, 1.0], [1.0, 0.0])
    assert difference(reference, dumped([0.02, 0.98], [1.0, 0.0])) == ""
    assert "answer 1 at 0 is 0.03 in place of 0, allowed is 0.025 off" in difference(
        reference, dumped([0.03, 0.98], [1.0, 0.0])
    )


def test_each_place_has_a_spread_of_its_own() -> None:
    """Boxes in hundreds of pixels must not excuse what scores do."""
    reference = dumped({"box": [1.0, 600.0], "score": 0.9}, {"box": [300.0, 5.0], "score": 0.1})
    assert difference(reference, dumped({"box": [1.0, 605.0], "score": 0.9}, {"box": [300.0, 5.0], "score": 0.1})) == ""
    assert "score" in difference(
        reference, dumped({"box": [1.0, 600.0], "score": 0.8}, {"box": [300.0, 5.0], "score": 0.1})
    )


def test_one_answer_is_measured_by_all_its_numbers_and_one_number_by_itself() -> None:
    assert difference(dumped({"a": 0.1, "b": 0.9}), dumped({"a": 0.11, "b": 0.89})) == ""
    assert difference(dumped({"a": 0.1, "b": 0.9}), dumped({"a": 0.2, "b": 0.8})) != ""
    assert difference(dumped(0.5), dumped(0.504)) == ""
    assert difference(dumped(0.5), dumped(0.51)) != ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([3], [4]),
        ([1.0, 2.0], [1.0, 2.0, 3.0]),
        ({"a": 1.0}, {"b": 1.0}),
        (True, 1),
        (1, 1.0),
        ([1.5, 2.5], [1.5, None]),
        ("1.0", 1.0),
        ([1.0, 2.0], [1.0, float("nan")]),
        ([1.0, 2.0], [1.0, float("inf")]),
    ],
)
def test_whole_numbers_words_and_forms_are_equal_or_different(old: Any, new: Any) -> None:
    assert difference(dumped(old), dumped(new)) != ""


def test_what_is_no_json_is_compared_byte_by_byte() -> None:
    assert difference([b"\x00\x01"], [b"\x00\x01"]) == ""
    assert difference([b"\x00\x01"], [b"\x00\x02"]) != ""
    assert difference([b"\x00"], []) == "0 answers in place of 1"


def test_the_order_of_keys_means_nothing() -> None:
    assert difference([b'{"a": 1.0, "b": 2.0}'], [b'{"b": 2.0, "a": 1.0}']) == ""


floats = st.lists(st.floats(-1000, 1000), min_size=2, max_size=20)


@given(floats)
def test_an_answer_never_differs_from_itself(values: list[float]) -> None:
    assert difference(dumped(values), dumped(values)) == ""


@given(floats, st.integers(0), st.floats(0.06, 5))
def test_one_number_beyond_the_tolerance_is_always_found(values: list[float], where: int, times: float) -> None:
    spread = max(values) - min(values)
    if spread < 1e-3:
        return
    moved = list(values)
    moved[where % len(values)] += spread * times
    assert difference(dumped(values), dumped(moved)) != ""
    nudged = [value + random.Random(0).uniform(-1, 1) * spread * 1e-3 for value in values]
    assert difference(dumped(values), dumped(nudged)) == ""
