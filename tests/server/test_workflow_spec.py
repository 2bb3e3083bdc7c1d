"""Specifications of workflows: which graphs can be run, and what the others are told (S52)."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchd_server.errors import WorkflowInvalid
from torchd_server.workflow_spec import MOST_NODES, Node, NodeSettings, WorkflowSpec, parse_spec


def spec(dag: Any, **models: Any) -> WorkflowSpec:
    return parse_spec({"models": models, "dag": dag})


def names(nodes: tuple[Node, ...]) -> list[str]:
    return [node.name for node in nodes]


def test_a_sequence_has_one_start_and_one_leaf() -> None:
    found = spec({"pre": ["a"], "a": ["post"]}, a={"url": "a.mar"})
    assert names(found.nodes) == ["pre", "a", "post"]
    assert (found.start.name, found.leaves) == ("pre", ("post",))
    assert [node.is_function for node in found.nodes] == [True, False, True]
    assert found.parents == {"pre": (), "a": ("pre",), "post": ("a",)}


def test_the_parents_of_a_join_stand_in_the_order_of_the_file() -> None:
    found = spec({"pre": ["a", "b"], "b": ["join"], "a": ["join"]})
    assert found.parents["join"] == ("b", "a")
    assert found.leaves == ("join",)


def test_settings_are_torchserves_unless_the_file_or_the_node_says_otherwise() -> None:
    given_all = {"min-workers": 2, "max-workers": 3, "batch-size": 4, "timeout-ms": 5, "retry-attempts": 0}
    found = spec({"pre": ["a", "b"]}, **given_all, a={"url": "a.mar"}, b={"url": "b.mar", "max-workers": 7})
    settings = {node.name: node.settings for node in found.nodes}
    assert found.settings == NodeSettings(2, 3, 4, 50, 0, 5)
    assert settings["a"] == found.settings
    assert settings["b"] == NodeSettings(2, 7, 4, 50, 0, 5)
    assert settings["pre"].batch_size == 1, "a function gets one request at a time"
    assert spec({"a": []}).settings == NodeSettings(1, 1, 1, 50, 1, 10_000)


def test_a_single_child_may_stand_without_a_list_and_a_leaf_without_children() -> None:
    assert spec({"a": "b", "b": None}).leaves == ("b",)
    assert spec({"a": []}).leaves == ("a",)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "no dag"),
    "no mapping": ({"dag": ["a"]}, "must be a mapping"),
    "cycle": ({"dag": {"a": ["b"], "b": ["a"]}}, "DAG should have only one start node"),
    "cycle behind the start": ({"dag": {"a": ["b"], "b": ["c"], "c": ["b"]}}, "Cycle detected"),
    "self": ({"dag": {"a": ["a"]}}, "its own child"),
    "two starts": ({"dag": {"a": ["c"], "b": ["c"]}}, "only one start node"),
    "too many nodes": ({"dag": {"a": [f"n{i}" for i in range(MOST_NODES)]}}, "limit is 64"),
    "ten thousand nodes": ({"dag": {f"n{i}": [f"n{i + 1}"] for i in range(10_000)}}, "may have 64 nodes"),
    "fan-out": (
        {"dag": {f"n{i}": [f"n{j}" for j in range(i + 1, 64)] for i in range(63)}},
        "more than 512 edges",
    ),
    "name": ({"dag": {"../a": []}}, "a name has"),
    "name of two": ({"dag": {"a__b": []}}, "a name has"),
    "function's name": ({"dag": {"a-b": []}}, "no function can have this name"),
    "child of no text": ({"dag": {"a": [1]}}, "list of names"),
    "model without url": ({"models": {"a": {}}, "dag": {"a": []}}, "needs a url"),
    "url of no text": ({"models": {"a": {"url": 3}}, "dag": {"a": []}}, "needs a url"),
    "model nowhere": ({"models": {"b": {"url": "b.mar"}}, "dag": {"a": []}}, "in no edge"),
    "unknown key": ({"models": {"a": {"url": "a", "gpus": 1}}, "dag": {"a": []}}, "unknown key 'gpus'"),
    "unknown section": ({"dag": {"a": []}, "nodes": {}}, "unknown key 'nodes'"),
    "negative": ({"models": {"retry-attempts": -1}, "dag": {"a": []}}, "retry-attempts: -1"),
    "text": ({"models": {"timeout-ms": "1"}, "dag": {"a": []}}, "timeout-ms: '1'"),
    "bool": ({"models": {"batch-size": True}, "dag": {"a": []}}, "batch-size: True"),
    "less than least": ({"models": {"min-workers": 3, "max-workers": 2}, "dag": {"a": []}}, "max-workers"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_run_is_refused_and_says_why(name: str) -> None:
    """S52."""
    document, message = BAD[name]
    with pytest.raises(WorkflowInvalid, match=message):
        parse_spec(document)


_NAMES = [f"n{i}" for i in range(8)]
_GRAPHS = st.dictionaries(st.sampled_from(_NAMES), st.lists(st.sampled_from(_NAMES), max_size=4), max_size=8)


@given(_GRAPHS)
def test_of_any_graph_what_is_accepted_runs_parents_first_from_one_start(dag: dict[str, list[str]]) -> None:
    nodes = {*dag, *(child for children in dag.values() for child in children)}
    starts = [name for name in nodes if not any(name in children for children in dag.values())]
    try:
        found = spec(dag)
    except WorkflowInvalid:
        assert len(starts) != 1 or _has_cycle(dag)
        return
    assert not _has_cycle(dag)
    assert [found.start.name] == starts
    assert set(names(found.nodes)) == nodes
    place = {name: number for number, name in enumerate(names(found.nodes))}
    assert all(place[parent] < place[child] for parent, children in dag.items() for child in children)
    assert set(found.leaves) == {name for name in nodes if not dag.get(name)}


def _has_cycle(dag: dict[str, list[str]]) -> bool:
    """Whether some node reaches itself, by following edges the long way."""
    for start in dag:
        seen: set[str] = set()
        reached = list(dag[start])
        while reached:
            name = reached.pop()
            if name == start:
                return True
            if name not in seen:
                seen.add(name)
                reached += dag.get(name, [])
    return False


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["models", "dag", "x"]), _ANYTHING))
def test_whatever_the_file_holds_the_answer_is_a_spec_or_a_refusal(document: dict[str, Any]) -> None:
    with contextlib.suppress(WorkflowInvalid):
        assert parse_spec(document).nodes
