"""What a worker says of `optimize:`, told by both surfaces."""

from __future__ import annotations

import json

import pytest

from torchd_server.surfaces.optimization import message
from torchd_server.torchserve.words import optimization

DIFFERENCE = {
    "inputs": 80,
    "max_difference": 0.01,
    "standard_deviation": 0.5,
    "ratio": 0.02,
    "equal_top1": None,
    "top1_judged": False,
}
OPTION = {"name": "dtype", "asked": "bf16", "applied": True, "detail": "layers", "difference": DIFFERENCE}


def said(**more: object) -> str:
    return json.dumps({"options": [OPTION], "unchecked": "", "warnings": [], **more})


def test_the_typed_message_has_what_the_worker_says() -> None:
    typed = message(said(warnings=["slow"], of_a_later_worker=1))
    assert list(typed.warnings) == ["slow"]
    assert typed.options[0].difference.ratio == 0.02
    assert not typed.options[0].difference.HasField("equal_top1")


def test_the_document_leaves_out_what_there_is_not() -> None:
    named = {"inputs": 80, "maxDifference": 0.01, "standardDeviation": 0.5, "ratio": 0.02, "top1Judged": False}
    assert optimization(said()) == {
        "options": [{"name": "dtype", "asked": "bf16", "applied": True, "detail": "layers", "difference": named}]
    }
    assert optimization(said(options=[{**OPTION, "difference": None}], unchecked="no samples")) == {
        "options": [{"name": "dtype", "asked": "bf16", "applied": True, "detail": "layers"}],
        "unchecked": "no samples",
    }


@pytest.mark.parametrize("text", ["{", "[]", '{"options": 3}', '{"options": [{"name": 3}]}', "[" * 100_000, '"x"'])
def test_nonsense_of_a_worker_costs_no_description(text: str) -> None:
    assert optimization(text) == {"unchecked": "the worker's report cannot be read"}
    assert message(text).unchecked == "the worker's report cannot be read"
