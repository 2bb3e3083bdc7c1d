"""TextHandler: what handlers of text have in common, cleaning above all."""

from __future__ import annotations

import os
import re
import string
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from torchd_workers.context import Context
from torchd_workers.handlers.base import BaseHandler
from torchd_workers.handlers.contractions import CONTRACTION_MAP
from torchd_workers.handlers.explaining import layer_integrated_gradients
from torchd_workers.handlers.text_utils import CLEANUP_REGEX, get_tokenizer
from torchd_workers.handlers.vocabulary import load_vocabulary

_CONTRACTIONS = re.compile("|".join(map(re.escape, CONTRACTION_MAP)), re.IGNORECASE)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextHandler(BaseHandler):
    """Base of the handlers of text. Needs source_vocab.pt; to explain, also a model with a layer `embedding`."""

    batching_cost = "tokens"

    def __init__(self) -> None:
        super().__init__()
        self.source_vocab: Any = None
        self.tokenizer = get_tokenizer("basic_english")
        self.input_text: str | None = None

    def initialize(self, context: Context) -> None:
        """Loads the model and the vocabulary."""
        super().initialize(context)
        self.initialized = False
        named = (self.manifest or {}).get("model", {}).get("sourceVocab")  # archives of old have it
        directory = context.system_properties["model_dir"]
        path = os.path.join(directory, named) if named else self.get_source_vocab_path(context)
        self.source_vocab = load_vocabulary(path)
        self.initialized = True

    def get_source_vocab_path(self, ctx: Context) -> str:
        """Where the vocabulary is."""
        return os.path.join(ctx.system_properties["model_dir"], "source_vocab.pt")

    @cached_property
    def lig(self) -> Any:
        """Captum's LayerIntegratedGradients of the model's embedding; a handler may put one of its own here."""
        return layer_integrated_gradients(self.model, self.model.embedding)

    def get_word_token(self, input_tokens: Sequence[str]) -> list[str]:
        """The words of tokens: without the mark that byte-pair tokenizers put for a space."""
        return [token.replace("Ġ", "") for token in input_tokens]

    def summarize_attributions(self, attributions: torch.Tensor) -> torch.Tensor:
        """Attributions as shares, by the length of the vector of their sums."""
        # The dimension that torch takes where a caller names none, as TorchServe's does.
        shares = torch.softmax(attributions, dim=0 if attributions.dim() in (0, 1, 3) else 1)
        normalized: torch.Tensor = shares / torch.linalg.vector_norm(shares.sum(dim=-1))
        return normalized

    def _expand_contractions(self, text: str) -> str:
        """I'd becomes I would; what apostrophes are left go."""
        return _CONTRACTIONS.sub(_expanded, text).replace("'", "")

    def _remove_accented_characters(self, text: str) -> str:
        return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()

    def _remove_html_tags(self, text: str) -> str:
        return CLEANUP_REGEX.sub("", text)

    def _remove_punctuation(self, text: str) -> str:
        return text.translate(_NO_PUNCTUATION)

    # TorchServe's first name for it, misspelt, which handlers call.
    _remove_puncutation = _remove_punctuation

    def _tokenize(self, text: str) -> list[str]:
        return self.tokenizer(text)


def _expanded(found: re.Match[str]) -> str:
    """The words of a contraction, with its own first letter, which may be a capital."""
    contraction = found.group()
    words = CONTRACTION_MAP.get(contraction) or CONTRACTION_MAP[contraction.lower()]
    return contraction[0] + words[1:]
