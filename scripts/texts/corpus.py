"""Texts as people write them: pieces of prose that is on every machine, cut to the lengths of a distribution."""

from __future__ import annotations

import ast
import json
import math
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

SHORTEST, LONGEST = 8, 128
VOCABULARY = 30_000
# Log-normal, as the lengths of sentences and messages are: half have no more tokens than the median.
MEDIAN, SPREAD = 24, 0.7
# The first and the last token of every text.
FRAME = 2


def prose() -> list[str]:
    """The words of the docstrings of Python's standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [word for file in sorted(folder.glob("*.py")) for text in _docstrings(file) for word in text.split()]


def _docstrings(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def make_tokenizer(words: list[str]) -> Tokenizer:
    """A WordPiece tokenizer as BERT's, of these words."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    # Every second sentence of them: the others are cut into pieces, as a language's words are by another's vocabulary.
    tokenizer.train_from_iterator((" ".join(words[at : at + 20]) for at in range(0, len(words), 40)), trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def requests(words: list[str], tokenizer: Tokenizer, count: int) -> list[bytes]:
    """So many requests, {"text": ...}, with texts of 8 to 128 tokens."""
    chance = random.Random(7)
    return [_request(words, tokenizer, chance) for _ in range(count)]


def _request(words: list[str], tokenizer: Tokenizer, chance: random.Random) -> bytes:
    wanted = min(LONGEST, max(SHORTEST, round(chance.lognormvariate(math.log(MEDIAN), SPREAD)))) - FRAME
    start = chance.randrange(len(words) - LONGEST)
    text = " ".join(words[start : start + LONGEST])
    encoded = tokenizer.encode(text, add_special_tokens=False)
    return json.dumps({"text": text[: encoded.offsets[min(wanted, len(encoded)) - 1][1]]}).encode()
