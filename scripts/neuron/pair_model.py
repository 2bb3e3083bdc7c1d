"""Two models that tell paraphrases from other pairs of sentences, both with the inputs and the output of a BERT
classifier of pairs, so that they can be traced, and served, in the same way.

They take input_ids, attention_mask and token_type_ids of pairs, and give a tuple of one tensor: a score per class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from demo.paraphrase.pack import model_folder, threshold
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, logging

CLASSES: tuple[str, ...] = ("not paraphrase", "paraphrase")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True, slots=True)
class PairModel:
    """A classifier of pairs: what `source` its tokenizer and weights came from, and the names of its classes."""

    source: str
    tokenizer: Any
    network: torch.nn.Module
    classes: tuple[str, ...]

    def encoded(self, pairs: list[tuple[str, str]], length: int) -> tuple[torch.Tensor, ...]:
        """The inputs for these pairs, each padded or truncated to `length` tokens."""
        firsts, seconds = zip(*pairs, strict=True)
        tokens = self.tokenizer(
            list(firsts), list(seconds), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return tuple(tokens[name] for name in INPUTS)


def load(model: str) -> PairModel:
    """The sentence model of the quickstart for "", else a BERT classifier of pairs by its folder or name."""
    # Nothing it would say here is for who runs the script.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if not model:
        source = model_folder()
        network: torch.nn.Module = SentencePairs(AutoModel.from_pretrained(source, **_PLAIN), threshold(source))
        classes = CLASSES
    else:
        source = Path(model).resolve() if Path(model).is_dir() else Path(model)
        classifier = AutoModelForSequenceClassification.from_pretrained(str(source), **_PLAIN)
        network, classes = Classifier(classifier), _classes(classifier.config)
    return PairModel(str(source), AutoTokenizer.from_pretrained(str(source)), network.eval(), classes)


# Plain matrix products: every compiler knows them, and no branch of the model looks at its data.
_PLAIN = {"attn_implementation": "eager"}


class Classifier(torch.nn.Module):
    """A BERT that classifies pairs, with a tuple for its output."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor]:
        """The scores of each pair."""
        output = self.classifier(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, return_dict=False
        )
        return (output[0],)


class SentencePairs(torch.nn.Module):
    """A model of single sentences as a classifier of pairs: it embeds both halves of a pair and compares them.

    All of it, the threshold too, is inside, and every shape in it is fixed.
    """

    def __init__(self, encoder: Any, threshold: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.threshold = threshold

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor]:
        """How far the similarity of each pair is below the threshold, and how far above."""
        in_first = attention_mask * (1 - token_type_ids)
        in_second = attention_mask * token_type_ids
        # The model has learned sentences that begin with [CLS] at position 0: the second one is moved there.
        length = input_ids.shape[1]
        places = torch.arange(length).unsqueeze(0) + in_first.sum(dim=1, keepdim=True) - 1
        places = places.clamp(0, length - 1)
        moved_ids = torch.cat([input_ids[:, :1], input_ids.gather(1, places)[:, 1:]], dim=1)
        moved_mask = torch.cat([attention_mask[:, :1], in_second.gather(1, places)[:, 1:]], dim=1)
        # Past the end every place is the last one, which is the second sentence's where a pair fills all of the length.
        held = torch.arange(length).unsqueeze(0) <= in_second.sum(dim=1, keepdim=True)
        first = self._embedding(input_ids, in_first)
        second = self._embedding(moved_ids, moved_mask * held)
        distance = torch.nn.functional.cosine_similarity(first, second) - self.threshold
        return (torch.stack([-distance, distance], dim=1),)

    def _embedding(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The mean of the states of a sentence; zeros for a row that is padding."""
        states = self.encoder(input_ids=input_ids, attention_mask=mask, return_dict=False)[0]
        shares = mask.unsqueeze(-1).to(states.dtype)
        total: torch.Tensor = (states * shares).sum(dim=1) / shares.sum(dim=1).clamp(min=1.0)
        return total


def _classes(config: Any) -> tuple[str, ...]:
    """The names of a classifier's classes; those of the paraphrase task where it has none."""
    names = tuple(config.id2label[number] for number in sorted(config.id2label))
    has_none = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    return CLASSES if has_none and len(names) == len(CLASSES) else names
