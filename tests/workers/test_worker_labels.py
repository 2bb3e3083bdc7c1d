"""The small helpers that handlers take from `ts.utils.util`."""

from __future__ import annotations

import json

import pytest

from torchd_workers.handlers.labels import load_label_mapping, map_class_to_label
from torchd_workers.handlers.pt2 import check_valid_pt2_backend, compile_arguments


def test_a_missing_mapping_is_none(tmp_path):
    assert load_label_mapping(str(tmp_path / "index_to_name.json")) is None


@pytest.mark.parametrize(
    ("content", "mapping"),
    [
        ({"0": "cat", "1": ["n02", "dog"]}, {"0": "cat", "1": "dog"}),
        ({"object_type_names": ["car", "tree"]}, {"0": "car", "1": "tree"}),
    ],
)
def test_each_form_of_mapping_is_read(tmp_path, content, mapping):
    file = tmp_path / "index_to_name.json"
    file.write_text(json.dumps(content))
    assert load_label_mapping(str(file)) == mapping


def test_a_mapping_that_is_none_names_its_file(tmp_path):
    file = tmp_path / "index_to_name.json"
    file.write_text("[1]")
    with pytest.raises(ValueError, match="holds a list"):
        load_label_mapping(str(file))


def test_classes_become_labels():
    assert map_class_to_label([[0.9, 0.1]], {"1": "dog", "0": "cat"}) == [{"cat": 0.9, "dog": 0.1}]
    assert map_class_to_label([[0.9]], None, [[4]]) == [{"4": 0.9}]


@pytest.mark.parametrize(
    ("pt2", "arguments"),
    [
        (None, None),
        ("inductor", {"backend": "inductor"}),
        ({"compile": {"enable": True, "backend": "eager"}}, {"backend": "eager"}),
        ({"compile": {"enable": False, "backend": "eager"}}, None),
        ({"mode": "default"}, {"mode": "default"}),
    ],
)
def test_each_form_of_pt2_is_read(pt2, arguments):
    assert compile_arguments(pt2) == arguments


def test_only_torchserves_backends_are_valid():
    assert check_valid_pt2_backend("inductor")
    assert not check_valid_pt2_backend("magic")
