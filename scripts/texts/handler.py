"""The handler of the texts: a batch is padded to its longest, so it asks for texts of like length together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from torchd_workers.handlers.base import BaseHandler


class ScoresHandler(BaseHandler):
    """Answers {"tokens": how many the text has, "scores": the two scores}."""

    batching_cost = "tokens"

    def initialize(self, context: Any) -> None:
        """Loads the model and the tokenizer."""
        super().initialize(context)
        file = Path(context.system_properties["model_dir"]) / "tokenizer.json"
        self.tokenizer = Tokenizer.from_file(str(file))
        self.tokenizer.enable_truncation(128)
        self.tokenizer.enable_padding()

    def preprocess(self, data: Any) -> Any:
        """Token numbers and the mask of the padding."""
        bodies = [row.get("data") or row["body"] for row in data]
        texts = [(body if isinstance(body, dict) else json.loads(body))["text"] for body in bodies]
        encoded = self.tokenizer.encode_batch_fast(texts)
        tokens = torch.tensor([each.ids for each in encoded])
        return tokens, torch.tensor([each.attention_mask for each in encoded])

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The scores, and how long each text was."""
        tokens, mask = data
        return super().inference(tokens, mask), mask.sum(1)

    def postprocess(self, data: Any) -> list[Any]:
        """One answer for each text."""
        scores, lengths = data
        return [
            {"tokens": length, "scores": row}
            for length, row in zip(lengths.tolist(), scores.float().tolist(), strict=True)
        ]
