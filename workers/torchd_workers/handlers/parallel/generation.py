"""Texts written token by token by all ranks in step: each runs the model, the leader chooses and says who goes on.

What the leader says is one tensor for each step, so that no rank waits in a collective that another has left.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from torchd_workers.handlers.optional_libraries import library
from torchd_workers.handlers.parallel.ranks import Ranks
from torchd_workers.handlers.parallel.sampling import Chooser, Sampling


@dataclass(slots=True)
class Text:
    """One text being written. `why` it ended: "stop" (by its own end), "length", "cancelled"; "" while it goes on."""

    prompt: Sequence[int]
    sampling: Sampling
    tokens: list[int] = field(default_factory=list)
    why: str = ""


class LeaderFailed(RuntimeError):
    """The leader's part of a step failed; on the leader the cause says how."""


class NextTokens(Protocol):
    """What the model says of the next token of each text: a row of logits each, on the leader at least."""

    def first(self, prompts: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """After the prompts, which are padded on the left; the mask is 1 where there is a token."""

    def next(self, tokens: torch.Tensor) -> torch.Tensor:
        """After one more token of each text."""


class Cached:
    """Remembers the keys and values of what was read, so that a step reads one token of each text."""

    def __init__(self, model: Any) -> None:
        self._model = model
        parameters = inspect.signature(model.forward).parameters
        # Logits of the last token only: those of a long prompt would be the largest tensor of all.
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._takes_positions = "position_ids" in parameters
        self._cache: Any = None
        self._mask = torch.empty(0)

    def first(self, prompts: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Reads the prompts."""
        self._cache = library("transformers", "generating text", "'torchd[torch]'").DynamicCache()
        self._mask = mask
        return self._read(prompts, (mask.cumsum(dim=-1) - 1).clamp(min=0))

    def next(self, tokens: torch.Tensor) -> torch.Tensor:
        """Reads one token of each text."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=-1)
        return self._read(tokens.unsqueeze(-1), self._mask.sum(dim=-1, keepdim=True) - 1)

    def _read(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        placed = {"position_ids": positions} if self._takes_positions else {}
        output = self._model(
            input_ids=tokens,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            **placed,
            **self._options,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def write(
    texts: Sequence[Text],
    model: NextTokens,
    ranks: Ranks,
    *,
    ends: Collection[int],
    pad: int,
    is_over: Callable[[int], bool],
    on_token: Callable[[int, int], object],
) -> None:
    """Writes the texts to their ends. Every rank calls it with the same texts; all of them get the tokens.

    On the leader alone `is_over` is asked between steps whether anybody waits for a text, and `on_token` is told each
    text's next token.
    """
    with torch.inference_mode():
        leader = _Leader(texts, ranks, set(ends), pad, is_over, on_token) if ranks.is_leader else None
        logits = model.first(*padded([text.prompt for text in texts], pad, ranks.device))
        while True:
            said = torch.zeros((2, len(texts)), dtype=torch.int64, device=ranks.device)
            if leader is not None:
                said.copy_(torch.tensor(leader.choose(logits)))
            tokens, states = ranks.from_leader(said).tolist()
            if _FAILED in states:
                failure = leader.failure if leader is not None else None
                raise LeaderFailed("the leader could not choose the next tokens") from failure
            for row, (text, token, state) in enumerate(zip(texts, tokens, states, strict=True)):
                if text.why:
                    continue
                text.why = _STATES[state]
                if text.why in ("", "length"):
                    text.tokens.append(token)
                    if leader is not None:
                        leader.tell(row, token)
            if all(text.why for text in texts):
                return
            logits = model.next(said[0])


def padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts as one tensor, the shorter ones filled up on the left, and where there are tokens."""
    longest = max(map(len, prompts))
    tokens = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


# What the leader says of a text: the first is "it goes on".
_STATES = ("", "stop", "length", "cancelled")
_FAILED = len(_STATES)


class _Leader:
    """Chooses for all. What goes wrong here is said to the others before it is raised: they wait for the next word."""

    def __init__(
        self,
        texts: Sequence[Text],
        ranks: Ranks,
        ends: set[int],
        pad: int,
        is_over: Callable[[int], bool],
        on_token: Callable[[int, int], object],
    ) -> None:
        self.failure: Exception | None = None
        self._texts = texts
        self._ends = ends
        self._pad = pad
        self._is_over = is_over
        self._on_token = on_token
        self._choosers = [Chooser(text.sampling, ranks.device) for text in texts]

    def choose(self, logits: torch.Tensor) -> tuple[list[int], list[int]]:
        """Each text's next token and how it goes on."""
        try:
            if self.failure is None:
                tokens, states = zip(*(self._next(row, logits) for row in range(len(self._texts))), strict=True)
                return list(tokens), list(states)
        except Exception as error:
            self.failure = error
        return [self._pad] * len(self._texts), [_FAILED] * len(self._texts)

    def tell(self, row: int, token: int) -> None:
        """Passes a token on to who waits for it."""
        try:
            self._on_token(row, token)
        except Exception as error:
            self.failure = error

    def _next(self, row: int, logits: torch.Tensor) -> tuple[int, int]:
        text = self._texts[row]
        if text.why:
            return self._pad, _STATES.index(text.why)
        if self._is_over(row):
            return self._pad, _STATES.index("cancelled")
        token = self._choosers[row].next(logits[row])
        if token in self._ends:
            return self._pad, _STATES.index("stop")
        is_last = len(text.tokens) + 1 >= text.sampling.max_new_tokens
        return token, _STATES.index("length" if is_last else "")
