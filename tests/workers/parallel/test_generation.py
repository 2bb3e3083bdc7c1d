"""Texts written by two real ranks together, and the parts of it that need no ranks."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.byte_models import bert_classifier, byte_tokenizer, llama, save
from harness.ranks import outputs, run_ranks

from torchd_workers.handlers.parallel.asked import asked_by
from torchd_workers.handlers.parallel.pieces import Pieces
from torchd_workers.handlers.parallel.sampling import Chooser, Sampling
from torchd_workers.handlers.rows import BadInput

PROGRAMS = Path(__file__).parent
ENVIRONMENT = {"PYTHONPATH": ":".join([str(PROGRAMS.parents[1]), *filter(None, sys.path)]), "HF_HUB_OFFLINE": "1"}
ROWS: list[Any] = [
    "hello world",
    {"inputs": "hi", "parameters": {"max_new_tokens": 5}},
    {"prompt": "x", "stream": True},
]


def run(program: str, *arguments: str, ranks: int = 2) -> list[dict[str, Any]]:
    """What each rank of a program prints last."""
    finished = run_ranks(PROGRAMS / program, *arguments, ranks=ranks, environment=ENVIRONMENT)
    return [json.loads(text.splitlines()[-1]) for text in outputs(finished)]


def generated(tokens: list[int], count: int) -> list[int]:
    """What transformers' own loop makes of a prompt with the whole model."""
    prompt = torch.tensor([tokens])
    made = llama().generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False, pad_token_id=256
    )
    return [token for token in made[0, len(tokens) :].tolist() if token not in (256, 257)]


@pytest.fixture(scope="module")
def written() -> list[dict[str, Any]]:
    """What both ranks of write_texts.py saw."""
    return run("write_texts.py")


def test_ranks_write_the_same_texts_as_the_whole_model(written: list[dict[str, Any]]) -> None:
    """Prompts of different lengths in one batch; a seed gives the same text again, in another batch too."""
    leader, follower = written
    assert leader["mixed"] == follower["mixed"]
    (first, _), (drawn, why), (third, _) = leader["mixed"]
    assert first == generated(list(range(65, 70)), 10)
    assert third == generated(list(range(65, 76)), 10)
    assert (why, len(drawn)) == ("length", 6)
    assert leader["seeded again"] == [drawn, why]


def test_a_cancel_takes_effect_between_steps_on_every_rank(written: list[dict[str, Any]]) -> None:
    """G05: the others of the batch go on; when nobody waits any more, all ranks stop together."""
    leader, follower = written
    assert leader["cancelled"] == follower["cancelled"]
    (tokens, why), (others, how) = leader["cancelled"]
    assert (len(tokens), why) == (3, "cancelled")
    assert (len(others), how) == (10, "length")
    assert [len(tokens) for tokens, _ in leader["all cancelled"]] == [3]
    assert leader["all cancelled"] == follower["all cancelled"]


def test_a_failure_of_the_leader_reaches_every_rank_and_the_next_text_is_written(written: list[dict[str, Any]]) -> None:
    """Nobody is left waiting in a collective."""
    leader, follower = written
    assert "nobody listens" in leader["failed"][1]
    assert follower["failed"] == [leader["failed"][0], "None"]
    assert leader["after"] == follower["after"] != []


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small decoder."""
    return save(llama(), tmp_path_factory.mktemp("llama"))


def test_the_handler_answers_on_two_ranks_as_on_one(decoder: Path) -> None:
    """JSON of several forms, a stream among them: its pieces and the last line together are the whole text."""
    alone, split = (run("serve_rows.py", str(decoder), kind, json.dumps(ROWS), ranks=ranks)
                    for kind, ranks in (("", 1), ("tp", 2)))  # fmt: skip
    assert split[0]["answers"] == split[1]["answers"] == alone[0]["answers"]
    assert split[0]["chunks"] == alone[0]["chunks"]
    assert split[1]["chunks"] == []
    first, second, last = split[0]["answers"]
    tokens = generated(list(byte_tokenizer()(ROWS[0])["input_ids"]), 64)
    assert first["generated_text"] == byte_tokenizer().decode(tokens)
    assert second["generated_tokens"] <= 5
    lines = [json.loads(chunk) for row, chunk in split[0]["chunks"] if row == 2] + [json.loads(last)]
    text = byte_tokenizer().decode(generated(list(byte_tokenizer()("x")["input_ids"]), 64))
    assert "".join(line["text"] for line in lines) == text
    assert lines[-1]["finish_reason"] in ("stop", "length")


def test_an_encoder_is_served_on_two_ranks_as_on_one(tmp_path: Path) -> None:
    """Labels of a classifier, vectors of an encoder, for texts of different lengths."""
    folder = save(bert_classifier(), tmp_path)
    for mode in ("text_classification", "feature-extraction"):
        arguments = (json.dumps(["good", "a longer text"]), json.dumps({"mode": mode}))
        [alone] = run("serve_rows.py", str(folder), "", *arguments, ranks=1)
        split = run("serve_rows.py", str(folder), "tp", *arguments)
        for answer, whole in zip(split[0]["answers"], alone["answers"], strict=True):
            assert answer.keys() == whole.keys()
            assert answer.get("label") == whole.get("label")
            numbers = ("score",) if mode == "text_classification" else ("embedding",)
            assert all(answer[name] == pytest.approx(whole[name], abs=1e-4) for name in numbers)


def test_pieces_put_together_are_the_text_though_characters_take_several_tokens() -> None:
    """No piece ends inside a character."""
    tokenizer = byte_tokenizer()
    pieces = Pieces(tokenizer)
    text = "naïve – 世界 🌍!"
    said = [pieces.take(token) for token in tokenizer(text)["input_ids"]]
    assert "".join(said) + pieces.end() == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(said)
    assert "🌍" in said


def test_the_choice_is_among_the_likeliest() -> None:
    """top_k and top_p narrow it; temperature 0 and top_p 0 leave the first."""
    logits = torch.tensor([1.0, 5.0, 4.0, -2.0])
    cpu = torch.device("cpu")
    assert Chooser(Sampling(), cpu).next(logits) == 1
    assert Chooser(Sampling(temperature=5.0, top_p=0.0), cpu).next(logits) == 1
    chooser = Chooser(Sampling(temperature=5.0, top_k=2, seed=1), cpu)
    assert {chooser.next(logits) for _ in range(50)} == {1, 2}
    chooser = Chooser(Sampling(temperature=1.0, top_p=0.75, seed=1), cpu)
    assert {chooser.next(logits) for _ in range(50)} == {1, 2}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"temperature": "hot"}, "temperature must be a number from 0 to 100, not 'hot'"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 2}, "top_p must be a number from 0 to 1"),
        ({"seed": 1.5}, "seed must be a whole number"),
    ],
)
def test_what_cannot_be_sampled_is_refused(asked: Mapping[str, Any], said: str) -> None:
    """The message names the option, its range and what was asked."""
    with pytest.raises(BadInput, match=said):
        Sampling().changed_by(asked)


def test_a_body_is_a_text_or_json_with_one() -> None:
    """As bytes, as text, as an object; brackets alone make no JSON."""
    assert asked_by({"body": bytearray(b"hello")}).text == "hello"
    assert asked_by({"data": "{not json}"}).text == "{not json}"
    assert asked_by({"body": b'{"prompt": "hi", "stream": true}'}).streams
    asked = asked_by({"body": {"inputs": "hi", "parameters": {"seed": 1}, "top_k": 3}})
    assert (asked.text, asked.options) == ("hi", {"seed": 1, "top_k": 3})
    for body in (b"\xff", {"prompt": 3}, {"question": "?"}, ["a"], {"inputs": "a", "parameters": 3}):
        with pytest.raises(BadInput):
            asked_by({"body": body})
    with pytest.raises(BadInput, match="stream must be true or false"):
        assert asked_by({"body": {"prompt": "a", "stream": "yes"}}).streams


def test_the_documented_deepspeed_handler_answers_without_deepspeed_and_with_it(decoder: Path) -> None:
    """The model split by torchd where DeepSpeed is not installed; where it is, by its engine. The same texts."""
    shutil.copy(PROGRAMS.parents[1] / "models" / "seed_deepspeed" / "ds-config.json", decoder)
    prompts = ["hello world", "hi"]
    told = run("run_deepspeed.py", str(decoder), json.dumps(prompts))
    assert told[0] == told[1]
    tokens = [byte_tokenizer()(prompt)["input_ids"] for prompt in prompts]
    texts = [byte_tokenizer().decode([*prompt, *generated(prompt, 12)], skip_special_tokens=True) for prompt in tokens]
    assert told[0]["answers"] == texts
    # Sixteen of 32 rows of the queries' weights: the half of a rank.
    assert told[0]["rows"] == 16
    assert told[0]["layer"] == ("LinearAllreduce" if find_spec("deepspeed") else "Linear")
