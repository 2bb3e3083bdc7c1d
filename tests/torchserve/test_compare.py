"""How two answers are compared, and which differences a row of torchserve_0.12.toml takes out."""

from __future__ import annotations

from typing import Any

from torchserve.compare import ABSENT, Difference, Intended, differences, intended


def paths(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """The places in which two answers differ."""
    return [one.path for one in differences(theirs, ours)]


def test_equal_answers_differ_nowhere() -> None:
    """The recorded row and id are no part of the answer."""
    assert paths({"id": "a", "row": "2.2", "status": 200}, {"status": 200}) == []


def test_a_difference_names_its_place_and_both_sides() -> None:
    """Deep in a document."""
    theirs = {"body": {"json": [{"workers": [{"status": "READY"}]}]}}
    ours = {"body": {"json": [{"workers": [{"status": "UNLOADING"}]}]}}
    assert list(differences(theirs, ours)) == [Difference("body.json.0.workers.0.status", "READY", "UNLOADING")]


def test_what_one_side_has_alone_is_absent_on_the_other() -> None:
    """Keys, list items and headers."""
    assert list(differences({"body": {"a": 1}}, {"body": {"b": [2]}})) == [
        Difference("body.a", 1, ABSENT),
        Difference("body.b", ABSENT, [2]),
    ]
    assert list(differences({"messages": [1, 2]}, {"messages": [1]})) == [Difference("messages.1", 2, ABSENT)]


def test_types_count() -> None:
    """1 is not true, and not 1.0."""
    assert paths({"body": {"json": 1}}, {"body": {"json": True}}) == ["body.json"]
    assert paths({"body": {"json": 1}}, {"body": {"json": 1.0}}) == ["body.json"]


def test_the_order_of_keys_counts_and_that_of_headers_does_not() -> None:
    """Clients print documents; they look headers up."""
    assert paths({"body": {"a": 1, "b": 2}}, {"body": {"b": 2, "a": 1}}) == ["body.<order>"]
    assert paths({"headers": [["A", "1"], ["B", "2"]]}, {"headers": [["b", "2"], ["a", "1"]]}) == []


def test_a_header_sent_twice_is_not_the_same_as_once() -> None:
    """A client reads both values."""
    assert paths({"headers": [["A", "1"]]}, {"headers": [["A", "1"], ["a", "2"]]}) == ["headers.a"]


def test_lines_are_compared_as_a_set() -> None:
    """One difference for each line that only one side has."""
    assert list(differences({"lines": ["a", "b"]}, {"lines": ["c", "b"]})) == [
        Difference("lines", "a", ABSENT),
        Difference("lines", ABSENT, "c"),
    ]


def test_an_intended_difference_covers_its_steps_places_and_values_only() -> None:
    """Each of the four is a condition."""
    rule = Intended("D99", "2.5", "why", ["here/*"], ["status"], theirs="404", ours="40[03]")
    assert rule.covers("here/a", Difference("status", 404, 400))
    assert not rule.covers("there/a", Difference("status", 404, 400))
    assert not rule.covers("here/a", Difference("reason", 404, 400))
    assert not rule.covers("here/a", Difference("status", 404, 500))
    assert not rule.covers("here/a", Difference("status", 200, 400))


def test_a_longer_sentence_must_begin_with_theirs() -> None:
    """`extends`."""
    rule = Intended("D99", "2.5", "why", ["*"], ["body"], extends=True)
    assert rule.covers("a/b", Difference("body", "not found", "not found; there are a, b"))
    assert not rule.covers("a/b", Difference("body", "not found", "nothing"))


def test_every_intended_difference_says_why_and_names_its_row() -> None:
    """What the file must hold."""
    for one in intended():
        assert one.reason
        assert one.row
        assert one.steps or one.requests
        assert one.paths
