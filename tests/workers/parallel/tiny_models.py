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


def decoder(kind: str) -> Any:
    """A model that generates."""
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(DECODERS[kind]).eval()
    # Random weights repeat one token; larger ones make the choice depend on what was said.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model
