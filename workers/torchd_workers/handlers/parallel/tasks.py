"""What a model is served for, by Hugging Face's names of tasks: from what requests ask to their answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from torchd_workers.context import Context
from torchd_workers.handlers.parallel.asked import Asked
from torchd_workers.handlers.parallel.generation import Text, write
from torchd_workers.handlers.parallel.models import RunningModel
from torchd_workers.handlers.parallel.pieces import Pieces
from torchd_workers.handlers.parallel.sampling import Sampling
from torchd_workers.handlers.rows import BadInput


class Task(Protocol):
    """One kind of answers. Made while the model loads, with `handler` of model-config.yaml, whose mistakes it finds."""

    def __init__(self, model: RunningModel, tokenizer: Any, options: Mapping[str, Any]) -> None: ...

    def prepare(self, asked: Asked) -> Any:
        """One request's input; raises BadInput."""

    def answer(self, prepared: Sequence[Any], rows: Sequence[int], context: Context) -> list[Any]:
        """An answer for each input; `rows` are the places of their requests in the batch."""


class TextGeneration:
    """Goes on with a prompt: {"generated_text", "finish_reason", "generated_tokens"}, or pieces of it in a stream."""

    def __init__(self, model: RunningModel, tokenizer: Any, options: Mapping[str, Any]) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._sampling = Sampling().changed_by(options)
        self._most = _most_tokens(model.config, options)
        self._ends = _ends(model.config, tokenizer)
        self._pad = next((token for token in (tokenizer.pad_token_id, *sorted(self._ends)) if token is not None), 0)

    def prepare(self, asked: Asked) -> tuple[Text, Pieces | None]:
        """The prompt's tokens, and what turns tokens into pieces if it streams."""
        prompt = self._tokenizer(asked.text)["input_ids"]
        if not prompt:
            raise BadInput("the prompt is empty")
        room = self._most - len(prompt)
        if room < 1:
            raise BadInput(f"the prompt has {len(prompt)} tokens; the model takes {self._most}, with those it writes")
        sampling = self._sampling.changed_by(asked.options)
        if sampling.max_new_tokens > room:
            sampling = sampling.changed_by({"max_new_tokens": room})
        return Text(prompt, sampling), Pieces(self._tokenizer) if asked.streams else None

    def answer(
        self, prepared: Sequence[tuple[Text, Pieces | None]], rows: Sequence[int], context: Context
    ) -> list[Any]:
        """The texts, written together."""
        texts = [text for text, _ in prepared]

        def stream(index: int, token: int) -> None:
            pieces = prepared[index][1]
            piece = pieces.take(token) if pieces is not None else ""
            if piece and context.send_chunk is not None:
                context.send_chunk(context, rows[index], _line({"text": piece}))

        with self._model.reading() as next_tokens:
            write(
                texts,
                next_tokens,
                self._model.ranks,
                ends=self._ends,
                pad=self._pad,
                is_over=lambda index: _is_over(context, rows[index]),
                on_token=stream,
            )
        return [self._answer(text, pieces) for text, pieces in prepared]

    def _answer(self, text: Text, pieces: Pieces | None) -> Any:
        facts = {"finish_reason": text.why, "generated_tokens": len(text.tokens)}
        if pieces is not None:
            return _line({"text": pieces.end(), **facts})
        return {"generated_text": self._tokenizer.decode(text.tokens, skip_special_tokens=True), **facts}


class TextClassification:
    """The likeliest label: {"label", "score"}; a list of them where `top_k` is more than 1."""

    def __init__(self, model: RunningModel, tokenizer: Any, options: Mapping[str, Any]) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._longest = _most_tokens(model.config, options)
        self._top = int(options.get("top_k", 1))

    def prepare(self, asked: Asked) -> str:
        """The text."""
        return asked.text

    def answer(self, prepared: Sequence[str], rows: Sequence[int], context: Context) -> list[Any]:
        """The labels of the texts."""
        logits = self._model.run(_tokens(self._tokenizer, prepared, self._longest, self._model.ranks.device))["logits"]
        return [self._labels(row) for row in logits.float()]

    def _labels(self, logits: torch.Tensor) -> Any:
        # One label alone, or labels that do not exclude each other, have a chance each.
        several = len(logits) > 1 and self._model.config.problem_type != "multi_label_classification"
        scores, labels = (logits.softmax(-1) if several else logits.sigmoid()).sort(descending=True)
        names = self._model.config.id2label
        found = [
            {"label": names.get(label, str(label)), "score": score}
            for label, score in zip(labels.tolist()[: self._top], scores.tolist()[: self._top], strict=True)
        ]
        return found[0] if self._top == 1 else found


class FeatureExtraction:
    """One vector for a text: {"embedding": [...]}, by `pooling` (mean, cls or last token) and `normalize`."""

    def __init__(self, model: RunningModel, tokenizer: Any, options: Mapping[str, Any]) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._longest = _most_tokens(model.config, options)
        pooling = options.get("pooling", "mean")
        if pooling not in _POOLINGS:
            raise ValueError(f"handler.pooling is {pooling!r}; it may be {', '.join(_POOLINGS)}")
        self._pool = _POOLINGS[pooling]
        self._normalize = bool(options.get("normalize", True))

    def prepare(self, asked: Asked) -> str:
        """The text."""
        return asked.text

    def answer(self, prepared: Sequence[str], rows: Sequence[int], context: Context) -> list[Any]:
        """The vectors of the texts."""
        inputs = _tokens(self._tokenizer, prepared, self._longest, self._model.ranks.device)
        states = self._model.run(inputs)["last_hidden_state"].float()
        vectors = self._pool(states, inputs["attention_mask"])
        if self._normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return [{"embedding": vector} for vector in vectors.tolist()]


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def _first(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return states[:, 0]


def _last(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]


_POOLINGS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean": _mean,
    "cls": _first,
    "last": _last,
}

# The task, and which of transformers' Auto classes has the head for it.
TASKS: dict[str, tuple[type[Task], str]] = {
    "text-generation": (TextGeneration, "AutoModelForCausalLM"),
    "text-classification": (TextClassification, "AutoModelForSequenceClassification"),
    "feature-extraction": (FeatureExtraction, "AutoModel"),
}


def _tokens(tokenizer: Any, texts: Sequence[str], longest: int, device: torch.device) -> dict[str, torch.Tensor]:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    found = tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
    return {name: tensor.to(device) for name, tensor in found.items()}


def _most_tokens(config: Any, options: Mapping[str, Any]) -> int:
    """How many tokens the model reads: what it is built for, or less by `handler.max_length`."""
    text_config = config.get_text_config()
    built_for = getattr(text_config, "max_position_embeddings", None) or getattr(text_config, "n_positions", None)
    # RoBERTa counts positions from behind its padding token.
    if built_for and text_config.model_type in ("roberta", "xlm-roberta", "camembert"):
        built_for -= text_config.pad_token_id + 1
    asked = options.get("max_length")
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 1):
        raise ValueError(f"handler.max_length is {asked!r}; it must be a number of tokens")
    return min(asked or 1 << 20, built_for or 1 << 20)


def _ends(config: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens after which a text is over."""
    said = getattr(config, "eos_token_id", None)
    ends = said if isinstance(said, list) else [said]
    return frozenset(token for token in (*ends, tokenizer.eos_token_id) if token is not None)


def _is_over(context: Context, row: int) -> bool:
    """On the leader: whether nobody waits for a row's answer any more, as it is and not as the ranks last agreed."""
    if row >= len(context.running):
        return False
    request = context.running[row]
    return request.over or request.time_remaining() <= 0


def _line(value: Mapping[str, Any]) -> str:
    """A piece of a stream: one line of JSON, so that the pieces put together can be taken apart."""
    return json.dumps(value, ensure_ascii=False) + "\n"
