"""Tells whether two sentences say the same, by the cosine similarity of their embeddings.

Written as for TorchServe: it imports `ts.*` and knows nothing of torchd.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer
from ts.torch_handler.base_handler import BaseHandler


class ParaphraseHandler(BaseHandler):
    """Answers ["paraphrase"] or ["not paraphrase"] to each {"seq_0": ..., "seq_1": ...}."""

    def initialize(self, context: Any) -> None:
        """Loads the tokenizer, the model and the threshold from the archive."""
        properties = context.system_properties
        model_dir = Path(properties["model_dir"])
        settings = json.loads((model_dir / "paraphrase.json").read_text())
        self.threshold = settings["threshold"]
        self.max_length = settings["max_length"]
        on_gpu = torch.cuda.is_available() and properties.get("gpu_id") is not None
        self.device = torch.device("cuda", properties["gpu_id"]) if on_gpu else torch.device("cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)
        self.model = AutoModel.from_pretrained(model_dir).to(self.device).eval()
        self.initialized = True

    def preprocess(self, data: list[dict[str, Any]]) -> Any:
        """Tokenizes all sentences of the batch together: first those of every seq_0, then those of every seq_1."""
        pairs = [_pair(row) for row in data]
        sentences = [pair["seq_0"] for pair in pairs] + [pair["seq_1"] for pair in pairs]
        encoded = self.tokenizer(
            sentences, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return encoded.to(self.device)

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The similarity of each pair, from one forward for the batch; padding has no part in an embedding."""
        with torch.inference_mode():
            states = self.model(**data).last_hidden_state
            mask = data["attention_mask"].unsqueeze(-1).to(states.dtype)
            embeddings = (states * mask).sum(dim=1) / mask.sum(dim=1)
            first, second = embeddings.chunk(2)
            return torch.nn.functional.cosine_similarity(first, second)

    def postprocess(self, data: torch.Tensor) -> list[list[str]]:
        """One list of one word per request."""
        return [["paraphrase" if similarity >= self.threshold else "not paraphrase"] for similarity in data.tolist()]


def _pair(row: dict[str, Any]) -> dict[str, str]:
    """The pair of one request: JSON that came as bytes or text, or that the server has decoded already."""
    content = row.get("data", row.get("body"))
    if isinstance(content, (bytes, bytearray, str)):
        content = json.loads(content)
    if not isinstance(content, dict) or not {"seq_0", "seq_1"} <= content.keys():
        raise ValueError('expected a JSON object with two sentences, {"seq_0": "...", "seq_1": "..."}')
    return content
