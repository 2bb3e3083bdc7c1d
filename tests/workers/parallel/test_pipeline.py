"""Pipelines of two and three gloo ranks give what the model in one piece gives (field.md row 40)."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.byte_models import byte_tokenizer, llama, save
from harness.ranks import Finished, run_ranks

# One pair and one trio of processes, which load torch and transformers once, run all of it.
pytestmark = pytest.mark.timeout(300)

PROGRAM = Path(__file__).with_name("pipeline_program.py")
MODELS = ("llama", "qwen2", "gpt2", "opt", "bloom", "bert")
# Sums in another order: batches of one row and of several are not computed alike.
CLOSE = 1e-5

PAIR = [
    *(f"logits:{kind}:1" for kind in MODELS),
    *(f"generate:{kind}:1" for kind in ("llama", "qwen2", "bloom")),
    *("stream:llama:1", "encoder:minilm:1", "plain:skip:1", "plain:sequential:1", "faults:gpt2:1", "handler:llama:1"),
    # The same with batches cut in two.
    *("logits:llama:2", "logits:gpt2:2", "generate:qwen2:2", "stream:gpt2:2", "encoder:minilm:2", "plain:skip:2"),
    *("faults:gpt2:2", "handler:llama:2"),
]
TRIO = ["logits:llama:2", "generate:gpt2:2", "plain:skip:2", "faults:gpt2:2"]

Report = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Told:
    """What the ranks of one program said, and how the leader and rank 1 ended."""

    report: Report
    ends: list[Finished]


def _run(folder: Path, plan: list[str], ranks: int, *last: str) -> Told:
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    finished = run_ranks(
        PROGRAM, str(folder), ",".join(plan), *last, ranks=ranks, environment=environment, timeout_seconds=250
    )
    assert all(one.stdout for one in finished), "\n".join(one.stderr for one in finished)
    return Told([json.loads(one.stdout.splitlines()[0]) for one in finished], finished)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What two ranks say; at last a stage of theirs raises."""
    folder = tmp_path_factory.mktemp("ranks")
    save(llama(), folder / "checkpoint", shard="20KB")
    return _run(folder, PAIR, 2, "broken:llama:1")


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What three ranks say."""
    return _run(tmp_path_factory.mktemp("ranks"), TRIO, 3)


@pytest.fixture(params=["pair", "trio"])
def report(request: pytest.FixtureRequest) -> Report:
    """Both of them."""
    found: Told = request.getfixturevalue(request.param)
    return found.report


def _of(report: Report, part: str, rank: int = 0, chunks: int | None = None) -> dict[str, Any]:
    ending = "" if chunks is None else f":{chunks}"
    found = {
        name: value for name, value in report[rank].items() if name.startswith(f"{part}:") and name.endswith(ending)
    }
    assert found, f"nothing ran {part}"
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


def test_beam_search_runs_where_batches_are_whole(pair: Told) -> None:
    """Its rows change places, in the caches of every rank."""
    assert all("beams" in said for said in _of(pair.report, "generate", chunks=1).values())


def test_a_token_takes_one_step(report: Report) -> None:
    """Six tokens are six steps: with the cache nothing is read twice."""
    assert {said["steps"] for said in _of(report, "generate").values()} == {6}


def test_a_stream_is_written_token_by_token_and_one_text_of_two_can_be_cancelled(pair: Told) -> None:
    """The cancelled text ends between two steps, and the other is written to its end."""
    for said in _of(pair.report, "stream").values():
        assert said["why"] == ["length", "cancelled"]
        assert said["texts"] == [said["wanted"][0], said["wanted"][1][:4]]
        assert sorted(said["pieces"]) == sorted([row, token] for row in (0, 1) for token in said["texts"][row])


def test_the_real_sentence_model_gives_the_same_vectors(pair: Told) -> None:
    """The encoder of the quickstart, for one to four sentences."""
    for said in _of(pair.report, "encoder").values():
        differences = {rows: value for rows, value in said.items() if rows != "kept"}
        assert len(differences) == 4
        assert max(differences.values()) < CLOSE


def test_the_handler_reads_its_stage_of_the_shards_and_writes_the_same_texts(pair: Told) -> None:
    """Of a checkpoint in many files each rank reads those its stage is in."""
    tokens = [byte_tokenizer()(prompt)["input_ids"] for prompt in ("to be", "or not to be")]
    texts = [
        llama().generate(torch.tensor([one]), max_new_tokens=9, do_sample=False, pad_token_id=256)[0, len(one) :]
        for one in tokens
    ]
    wanted = [byte_tokenizer().decode(text, skip_special_tokens=True) for text in texts]
    for said in _of(pair.report, "handler").values():
        assert said["answers"] == wanted
    for rank in (0, 1):
        for said in _of(pair.report, "handler", rank).values():
            assert 1 < len(set(said["read"])) < said["shards"]


def test_each_rank_keeps_its_stage_only(pair: Told) -> None:
    """What the ranks hold together is hardly more than the model: small tables of positions are on all of them."""
    for part in ("logits:llama:1", "encoder:minilm:1"):
        shares = [rank[part]["kept"] for rank in pair.report]
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
    """S18. The library's own way to agree on shapes would be heard: it sends pickled objects. Loading is heard too."""
    assert [rank["unpickled"] for rank in report] == [[]] * len(report)
    assert all(rank["hears"] for rank in report)


def test_a_stage_that_raises_ends_its_rank_and_the_leader_is_told_at_once(pair: Told) -> None:
    """Nobody waits until a timeout for a rank that has gone."""
    leader, follower = pair.ends
    assert follower.status != 0
    assert "MemoryError: no room for the second step" in follower.stderr
    assert "answered" not in leader.stdout
    assert "losed" in leader.stdout.partition("\n")[2] + leader.stderr
