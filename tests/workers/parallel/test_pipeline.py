"""Pipelines of two and three gloo ranks give what the model in one piece gives (field.md row 40)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.ranks import outputs, run_ranks

# Each fixture runs all there is to run with so many ranks, in processes that load torch and transformers once.
pytestmark = pytest.mark.timeout(300)

PROGRAM = Path(__file__).with_name("pipeline_program.py")
MODELS = ("llama", "qwen2", "gpt2", "opt", "bloom", "bert")
# Sums in another order: batches of one row and of several are not computed alike.
CLOSE = 1e-5

WHOLE_BATCHES = [
    *(f"logits:{kind}" for kind in MODELS),
    *(f"generate:{kind}" for kind in ("llama", "qwen2", "bloom")),
    "stream:llama",
    "encoder:minilm",
    "plain:skip",
    "plain:sequential",
    "faults:gpt2",
]
IN_TWO_CHUNKS = [
    "logits:llama",
    "logits:gpt2",
    "generate:qwen2",
    "stream:gpt2",
    "encoder:minilm",
    "plain:skip",
    "faults:gpt2",
]

Report = list[dict[str, Any]]


def _run(folder: Path, plan: list[str], chunks: int, ranks: int = 2) -> Report:
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    finished = run_ranks(
        PROGRAM, str(folder), ",".join(plan), str(chunks), ranks=ranks, environment=paths, timeout_seconds=250
    )
    return [json.loads(text) for text in outputs(finished)]


@pytest.fixture(scope="module")
def whole_batches(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """What two ranks say that run each batch in one piece."""
    return _run(tmp_path_factory.mktemp("ranks"), WHOLE_BATCHES, 1)


@pytest.fixture(scope="module")
def in_two_chunks(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """What two ranks say that cut each batch in two."""
    return _run(tmp_path_factory.mktemp("ranks"), IN_TWO_CHUNKS, 2)


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """What three ranks say."""
    return _run(
        tmp_path_factory.mktemp("ranks"), ["logits:llama", "generate:gpt2", "plain:skip", "faults:gpt2"], 2, ranks=3
    )


@pytest.fixture(params=["whole_batches", "in_two_chunks", "three_ranks"])
def report(request: pytest.FixtureRequest) -> Report:
    """Each of the three."""
    found: Report = request.getfixturevalue(request.param)
    return found


def _of(report: Report, what: str, rank: int = 0) -> dict[str, Any]:
    found = {name: value for name, value in report[rank].items() if name.startswith(f"{what}:")}
    assert found, f"nothing ran {what}"
    return found


def test_a_model_in_stages_gives_the_same_logits(report: Report) -> None:
    """Batches of one to four rows, odd ones too, with padding before a prompt."""
    for kind, said in _of(report, "logits").items():
        differences = {shape: value for shape, value in said.items() if shape != "kept"}
        assert len(differences) == 8
        assert max(differences.values()) < CLOSE, kind


def test_transformers_generate_writes_the_same_texts(report: Report) -> None:
    """Greedy, sampled with the same seed, without a cache and, where batches are not cut, by beam search."""
    for kind, said in _of(report, "generate").items():
        for way, (wanted, got) in {way: texts for way, texts in said.items() if way != "steps"}.items():
            assert got == wanted, (kind, way)


def test_beam_search_runs_where_batches_are_whole(whole_batches: Report) -> None:
    """Its rows change places, in the caches of every rank."""
    assert all("beams" in said for said in _of(whole_batches, "generate").values())


def test_a_token_takes_one_step(report: Report) -> None:
    """Six tokens are six steps: with the cache nothing is read twice."""
    assert {said["steps"] for said in _of(report, "generate").values()} == {6}


def test_a_stream_is_written_token_by_token_and_one_text_of_two_can_be_cancelled(whole_batches: Report) -> None:
    """The cancelled text ends between two steps, and the other is written to its end."""
    for said in _of(whole_batches, "stream").values():
        assert said["why"] == ["length", "cancelled"]
        assert said["texts"] == [said["wanted"][0], said["wanted"][1][:4]]
        assert sorted(said["pieces"]) == sorted([row, token] for row in (0, 1) for token in said["texts"][row])


def test_the_real_sentence_model_gives_the_same_vectors(whole_batches: Report, in_two_chunks: Report) -> None:
    """The encoder of the quickstart, for one to four sentences."""
    for report in (whole_batches, in_two_chunks):
        said = dict(report[0]["encoder:minilm"])
        del said["kept"]
        assert len(said) == 4
        assert max(said.values()) < CLOSE


def test_each_rank_keeps_its_stage_only(whole_batches: Report) -> None:
    """What the ranks hold together is hardly more than the model: small tables of positions are on all of them."""
    for what in ("logits:llama", "encoder:minilm"):
        shares = [rank[what]["kept"] for rank in whole_batches]
        assert max(shares) < 0.65
        assert sum(shares) < 1.02


def test_other_modules_are_cut_along_their_graph(report: Report) -> None:
    """Also where a value made early is needed late."""
    for kind, said in [pair for pair in report[0].items() if pair[0].startswith("plain:")]:
        assert max(said.values()) < CLOSE, kind


def test_a_request_that_cannot_be_fails_alone(report: Report) -> None:
    """A token the table does not have, in the first or the last microbatch; a prompt longer than the positions."""
    for said in [value for name, value in report[0].items() if name.startswith("faults:")]:
        assert said["first"] == said["last"] == said["long"] == "IndexError"
        assert max(said["after first"], said["after last"], said["after long"]) < CLOSE
        assert "labels" in said["labels"]
        assert "output_hidden_states" in said["inner states"]


def test_nothing_is_unpickled_on_any_rank(report: Report) -> None:
    """S18. The library's own way to agree on shapes would be heard: it sends pickled objects."""
    assert [rank["unpickled"] for rank in report] == [[]] * len(report)
    assert all(rank["hears"] for rank in report)


def test_a_stage_that_raises_ends_its_rank_and_the_leader_is_told_at_once(tmp_path: Path) -> None:
    """Nobody waits until a timeout for a rank that has gone."""
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    leader, follower = run_ranks(PROGRAM, str(tmp_path), "broken:llama", "1", environment=paths, timeout_seconds=100)
    assert follower.status != 0
    assert "MemoryError: no room for the second step" in follower.stderr
    assert "answered" not in leader.stdout
    assert "losed" in leader.stdout + leader.stderr
