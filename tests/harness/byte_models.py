"""Hugging Face models so small that a test can make them: a decoder with a tokenizer of bytes, and classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

# Its thread would outlive the test.
disable_progress_bar()

END = "<end>"
PAD = "<pad>"
VOCABULARY = 260


def byte_tokenizer() -> Any:
    """A token for each byte of UTF-8, so that a character may take several."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)} | {PAD: 256, END: 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left")


def llama(
    heads: int = 4,
    key_value_heads: int = 2,
    tied: bool = False,
    vocabulary: int = VOCABULARY,
    positions: int = 512,
) -> Any:
    """A decoder with random weights, the same each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=8 * heads,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=257,
        pad_token_id=256,
    )
    return LlamaForCausalLM(config).eval()


def endless_llama() -> Any:
    """One that writes up to 16,384 tokens and never chooses the one that ends a text."""
    model = llama(positions=1 << 14)
    with torch.no_grad():
        model.lm_head.weight[256:] = 0
    return model


def qwen2() -> Any:
    """Another, with biases in its attention."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    model = Qwen2ForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def bert_classifier(heads: int = 4) -> Any:
    """An encoder with three labels, of a kind for which transformers ships no plan."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8 * heads,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=heads,
        max_position_embeddings=128,
        initializer_range=0.5,
        id2label={0: "bad", 1: "middling", 2: "good"},
        label2id={"bad": 0, "middling": 1, "good": 2},
        pad_token_id=256,
    )
    return BertForSequenceClassification(config).eval()


def save(model: Any, folder: Path, shard: str = "5GB") -> Path:
    """The model and its tokenizer as a checkpoint; `shard` is the size of its files at most."""
    model.save_pretrained(folder, max_shard_size=shard)
    byte_tokenizer().save_pretrained(folder)
    return folder
