"""How the next token is chosen. Only the leader chooses; the others are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from torchd_workers.handlers.rows import BadInput


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a request asks of its text. Temperature 0 is greedy: always the likeliest token."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    # 0 is no limit.
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def changed_by(self, asked: Mapping[str, Any]) -> Sampling:
        """These, with what a request asks; raises BadInput for what cannot be."""
        found = {name: asked[name] for name in Sampling.__dataclass_fields__ if asked.get(name) is not None}
        temperature = self.temperature
        if "temperature" not in found and {"top_k", "top_p", "seed"} & found.keys() and not temperature:
            temperature = 1.0  # who narrows the choice wants one
        return Sampling(
            max_new_tokens=_whole(found, "max_new_tokens", self.max_new_tokens, 1, 1 << 20),
            temperature=_real(found, "temperature", temperature, 0, 100),
            top_k=_whole(found, "top_k", self.top_k, 0, 1 << 20),
            top_p=_real(found, "top_p", self.top_p, 0, 1),
            seed=_whole(found, "seed", 0, 0, 1 << 62) if "seed" in found else self.seed,
        )


class Chooser:
    """Chooses the tokens of one text, with a random number generator of its own."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._sampling = sampling
        self._random = torch.Generator(device)
        if sampling.seed is not None:
            self._random.manual_seed(sampling.seed)
        else:
            self._random.seed()

    def next(self, logits: torch.Tensor) -> int:
        """A token, by what the model says of each."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        scores, tokens = (logits.float() / self._sampling.temperature).sort(descending=True)
        if self._sampling.top_k:
            scores, tokens = scores[: self._sampling.top_k], tokens[: self._sampling.top_k]
        chances = scores.softmax(dim=-1)
        # The likeliest that together reach top_p: the first is always one of them.
        beyond = chances.cumsum(dim=-1) - chances >= self._sampling.top_p
        beyond[0] = False
        chances = chances.masked_fill(beyond, 0)
        return int(tokens[torch.multinomial(chances, 1, generator=self._random)])


def _real(asked: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = asked.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadInput(f"{name} must be a number from {low} to {high}, not {value!r:.50}")
    return float(value)


def _whole(asked: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = asked.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadInput(f"{name} must be a whole number from {low} to {high}, not {value!r:.50}")
    return value
