"""index_to_name.json: names for the numbers a classifier gives."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from json import load
from typing import Any

logger = logging.getLogger(__name__)

Mapping = dict[str, str]


def load_label_mapping(mapping_file_path: str) -> Mapping | None:
    """The mapping in the file, or None where there is no file.

    A list of names under "object_type_names" is numbered; of a list of names for one class the last is taken.
    """
    if not os.path.isfile(mapping_file_path):
        logger.info("no %s: classes stay numbers", os.path.basename(mapping_file_path))
        return None
    with open(mapping_file_path, encoding="utf-8") as file:
        mapping = load(file)
    if isinstance(mapping, dict) and isinstance(mapping.get("object_type_names"), list):
        mapping = {str(index): name for index, name in enumerate(mapping["object_type_names"])}
    if not isinstance(mapping, dict):
        raise ValueError(f"{mapping_file_path} holds a {type(mapping).__name__}; it must be an object of class to name")
    return {key: _name(mapping_file_path, key, value) for key, value in mapping.items()}


def map_class_to_label(
    probs: Sequence[Sequence[float]],
    mapping: Mapping | None = None,
    lbl_classes: Iterable[Sequence[Any]] | None = None,
) -> list[dict[str, float]]:
    """One {label: probability} per row; without `lbl_classes` the classes are counted, without `mapping` they stay."""
    if not isinstance(probs, list):
        raise TypeError(f"probabilities come as a list of lists, not as a {type(probs).__name__}: call tolist() first")
    rows = lbl_classes if lbl_classes is not None else [range(len(row)) for row in probs]
    names = mapping or {}
    return [
        {names.get(str(number), str(number)): probability for number, probability in zip(classes, row, strict=False)}
        for classes, row in zip(rows, probs, strict=False)
    ]


def _name(file: str, key: str, value: Any) -> str:
    name = value[-1] if isinstance(value, list) and value else value
    if not isinstance(name, str):
        raise ValueError(f"{file} names class {key!r} {value!r}; a name must be text")
    return name
