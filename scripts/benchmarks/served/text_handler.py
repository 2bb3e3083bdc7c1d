"""The handler of the text models, over BaseHandler: a batch is padded to its longest text, the answer is its scores."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import load_file
from ts.torch_handler.base_handler import BaseHandler

FIRST_WORD, START, END = 2000, 101, 102


class TextScores(BaseHandler):
    """Takes {"text": "w12 w7 ..."}: the word wN is the token 2000 + N."""

    # torchd batches texts of like length together; TorchServe does not look.
    batching_cost = "tokens"

    def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str | None) -> Any:
        """The model with the archive's weights: torchd's base class reads safetensors, TorchServe's only pickles."""
        if hasattr(BaseHandler, "_load_weights") or model_pt_path is None:
            return super()._load_pickled_model(model_dir, model_file, model_pt_path)
        model = super()._load_pickled_model(model_dir, model_file, None)
        model.load_state_dict(load_file(model_pt_path))
        return model

    def preprocess(self, data: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Token numbers and the mask of the padding."""
        texts = [_tokens(json.loads(bytes(row.get("body") or row["data"]))["text"]) for row in data]
        longest = max(map(len, texts))
        tokens = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
        return tokens, mask

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The scores of each text."""
        tokens, mask = data
        scores: torch.Tensor = super().inference(tokens, mask)
        return scores

    def postprocess(self, data: torch.Tensor) -> list[str]:
        """{"logits": [...]} for each text."""
        return [json.dumps({"logits": row}) for row in data.tolist()]


def _tokens(text: str) -> list[int]:
    return [START, *(FIRST_WORD + int(word[1:]) for word in text.split()), END]
