"""source_vocab.pt: the numbers a text model gives to tokens. Read without running code from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any

import torch

UNKNOWN = ("<unk>", "[UNK]", "<UNK>")


class Vocabulary(Mapping[str, int]):
    """Tokens and their numbers. A token it does not know has the number of "<unk>", where there is one."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._numbers = numbers
        self._unknown = next((numbers[name] for name in UNKNOWN if name in numbers), None)

    def __getitem__(self, token: str) -> int:
        number = self._numbers.get(token, self._unknown)
        if number is None:
            raise KeyError(f"the token {token!r} is not in the vocabulary, which has no '<unk>' for unknown ones")
        return number

    def __iter__(self) -> Any:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def load_vocabulary(path: str) -> Vocabulary:
    """The vocabulary that torch.save wrote: a dict from token to number, or the list of tokens."""
    name = os.path.basename(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the archive has no {name}: give it with --extra-files (docs/handlers.md, text)")
    try:
        saved = torch.load(path, weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{name} holds an object that only running code could make, such as a torchtext Vocab. "
            "Save its dict instead: torch.save(vocab.get_stoi(), 'source_vocab.pt')"
        ) from error
    if isinstance(saved, list):
        saved = {token: number for number, token in enumerate(saved)}
    if not isinstance(saved, dict):
        raise ValueError(
            f"{name} holds a {type(saved).__name__}; it must be a dict of token to number or a list of tokens"
        )
    return Vocabulary(saved)
