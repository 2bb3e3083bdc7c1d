"""Small transformers models with random weights, the same on every rank."""

from __future__ import annotations

from typing import Any

import torch
import transformers

_SIZES: dict[str, int] = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
_ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
DECODERS: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**_SIZES, **_ENDS, intermediate_size=64, num_key_value_heads=2),
    "qwen2": transformers.Qwen2Config(
        **_SIZES,
        **_ENDS,
        intermediate_size=64,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
    ),
    "gpt2": transformers.GPT2Config(**_SIZES, **_ENDS, max_position_embeddings=64),
    "opt": transformers.OPTConfig(**_SIZES, **_ENDS, ffn_dim=64, word_embed_proj_dim=16),
    "bloom": transformers.BloomConfig(**_SIZES, **_ENDS),
}
# One whose head has weights of its own beside those of the modules in it.
ENCODERS: dict[str, Any] = {"bert": transformers.BertConfig(**_SIZES, intermediate_size=64)}


def language_model(kind: str) -> Any:
    """A model that says of each token what may stand there; decoders generate."""
    torch.manual_seed(7)
    if kind in ENCODERS:
        return transformers.AutoModelForMaskedLM.from_config(ENCODERS[kind]).eval()
    model = transformers.AutoModelForCausalLM.from_config(DECODERS[kind]).eval()
    # Random weights repeat one token; larger ones make the choice depend on what was said.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


class Skip(torch.nn.Module):
    """A module of a user's own: a value made early is needed late."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 16)
        self.middle = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(4)))
        self.last = torch.nn.Linear(16, 3)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, scale: float = 2.0, extra: Any = None
    ) -> dict[str, torch.Tensor]:
        begun = self.first(x) * scale
        if extra is not None:
            begun = begun + extra
        return {"out": self.last(torch.relu(self.middle(begun)) + begun) + y, "begun": begun}


def module(kind: str) -> torch.nn.Module:
    """A module that is no transformers model."""
    torch.manual_seed(7)
    if kind == "skip":
        return Skip().eval()
    layers = [
        torch.nn.Linear(6, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 16),
        torch.nn.Dropout(),
        torch.nn.Linear(16, 3),
    ]
    return torch.nn.Sequential(*layers).eval()
