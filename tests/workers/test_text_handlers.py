"""The handlers of text: cleaning as TorchServe's, vocabularies without pickled code, explanations."""

from __future__ import annotations

import json

import pytest

from torchd_protos.frames import Loaded

torch = pytest.importorskip("torch")
from torchd_workers.handlers.text_classifier import TextClassifier  # noqa: E402
from torchd_workers.handlers.text_utils import get_tokenizer, ngrams_iterator  # noqa: E402
from torchd_workers.handlers.vocabulary import load_vocabulary  # noqa: E402

MODEL = """
import torch


class Bag(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.embedding = torch.nn.EmbeddingBag(8, 4)
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, text, offsets):
        return self.layer(self.embedding(text, offsets))
"""
VOCABULARY = {"<unk>": 0, "the": 1, "cat": 2, "dog": 3, "the cat": 4, "is": 5, "not": 6, "there": 7}
# Recorded from TorchServe 0.12's TextClassifier, steps before the vocabulary.
CLEANED = {
    "I'd say y'all <b>aren't</b> there, naïve &amp; so!": "i would say you all are not there naive so",
    "He'll go at 5 o'clock. It's won't can't've": "he will go at 5 of the clock it is will not cannotve",
    "ain't 'cause let's": "as not ecause let us",
    "rock'n'roll (the semi;colon: one)": "rocknroll the semicolon one",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "index_to_name.json").write_text('{"0": "bad", "1": "good"}')
    torch.save(VOCABULARY, tmp_path / "source_vocab.pt")
    return tmp_path


def load(worker, handler="text_classifier"):
    return worker.load(handler, manifest_json=json.dumps({"model": {"modelName": "text", "modelFile": "model.py"}}))


@pytest.mark.parametrize("text", CLEANED)
def test_text_is_cleaned_as_torchserve_cleans_it(text):
    handler = TextClassifier()
    assert " ".join(handler._tokenize(handler._cleaned(text))) == CLEANED[text]


def test_every_request_of_a_batch_gets_its_classes(start, folder):
    """TorchServe answers the first request only, and the others not at all."""
    worker = start(folder)
    assert load(worker) == Loaded()
    texts = [b"the cat", b"<p>The cat isn't there</p>", b"something else"]
    together = [json.loads(bytes(answer.body)) for answer in worker.run(*texts)]
    alone = [json.loads(bytes(worker.ask(text).body)) for text in texts]
    assert together == alone
    assert len({answer["good"] for answer in together}) == 3
    for answer in together:
        assert list(answer) == ["bad", "good"]
        assert sum(answer.values()) == pytest.approx(1)


def test_an_answer_is_the_models_for_the_numbers_of_the_ngrams(start, folder):
    worker = start(folder)
    assert load(worker) == Loaded()
    space: dict = {}
    exec(MODEL, space)
    numbers = torch.tensor([1, 2, 4])  # the, cat, the cat
    expected = torch.softmax(space["Bag"]()(numbers, torch.tensor([0])), dim=1)[0].tolist()
    assert list(json.loads(bytes(worker.ask(b"The cat").body)).values()) == pytest.approx(expected, rel=1e-5)


def test_text_that_is_not_utf8_is_the_clients_mistake(start, folder):
    worker = start(folder)
    assert load(worker) == Loaded()
    good, failure = worker.run(b"the cat", b"\xff")
    assert set(json.loads(bytes(good.body))) == {"bad", "good"}
    assert (failure.status, failure.message[:21]) == (400, "the text is not UTF-8")


def test_words_have_importances(folder, monkeypatch):
    """Layer Integrated Gradients over the embedding, with the tokens as words."""
    pytest.importorskip("captum")
    handler = initialized(folder, monkeypatch)
    (explained,) = handler.get_insights(handler.preprocess([{"data": "the cat is there"}]), None, 1)
    assert explained["words"] == ["the", "cat", "is", "there"]
    assert torch.tensor(explained["importances"]).numel() > 0


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"cat": 1}, None),
        (["dog", "cat"], None),
        (3, "holds a int; it must be a dict of token to number or a list of tokens"),
        (torch.nn.Linear(1, 1), r"torch.save\(vocab.get_stoi\(\), 'source_vocab.pt'\)"),
    ],
)
def test_a_vocabulary_is_a_dict_or_a_list_and_runs_no_code(tmp_path, saved, message):
    """S20: a torchtext Vocab is an object that only running code could make."""
    path = str(tmp_path / "source_vocab.pt")
    torch.save(saved, path)
    if message is None:
        assert load_vocabulary(path)["cat"] == 1
        return
    with pytest.raises(ValueError, match=message):
        load_vocabulary(path)


def test_an_unknown_token_is_unk_or_an_error_that_names_it(tmp_path):
    path = str(tmp_path / "source_vocab.pt")
    torch.save({"<unk>": 9, "cat": 1}, path)
    assert load_vocabulary(path)["cow"] == 9
    torch.save({"cat": 1}, path)
    with pytest.raises(KeyError, match="the token 'cow' is not in the vocabulary"):
        load_vocabulary(path)["cow"]


def test_an_archive_without_a_vocabulary_says_how_to_give_one(start, folder):
    (folder / "source_vocab.pt").unlink()
    failed = load(start(folder))
    assert failed.message.startswith(
        "FileNotFoundError: the archive has no source_vocab.pt: give it with --extra-files"
    )


def test_ngrams_follow_the_tokens():
    assert list(ngrams_iterator(["here", "we", "are"], 2)) == ["here", "we", "are", "here we", "we are"]
    assert list(ngrams_iterator(["a", "b", "c"], 3))[-1] == "a b c"


def test_tokenizers_by_name():
    assert get_tokenizer(None)("You can, now") == ["You", "can,", "now"]
    assert get_tokenizer("basic_english")('You can\'t, "now"!') == ["you", "can", "'", "t", ",", "now", "!"]
    assert get_tokenizer(list)("ab") == ["a", "b"]
    with pytest.raises(ValueError, match="no tokenizer 'spacy'"):
        get_tokenizer("spacy")


def initialized(folder, monkeypatch):
    from torchd_workers.torchserve.mock_context import MockContext

    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(__import__("sys").modules, "model", raising=False)
    handler = TextClassifier()
    handler.initialize(MockContext(None, str(folder)))
    monkeypatch.delitem(__import__("sys").modules, "model", raising=False)
    return handler
