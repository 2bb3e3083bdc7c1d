"""Answers pairs of sentences with the class a traced BERT gives them, e.g. ["paraphrase"].

Written as for TorchServe: it imports `ts.*` and goes into the archive, with config.json and the traced programs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from ts.torch_handler.traced_handler import BadInput, TracedHandler


class BertPairHandler(TracedHandler):
    """Takes seq_0 and seq_1, as the parts of a form or of a gRPC request, or as one JSON object."""

    def initialize(self, context: Any) -> None:
        """Loads the programs, the tokenizer and the names of the classes."""
        super().initialize(context)
        model_dir = Path(context.system_properties["model_dir"])
        config = json.loads((model_dir / "config.json").read_text())
        self.classes = config["classes"]
        own = model_dir / "tokenizer_config.json"
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir if own.is_file() else config["model_name"])

    def preprocess(self, data: Any) -> Any:
        """The pairs as tokens, padded to the longest of them; what no program takes is truncated."""
        pairs = [_pair(row) for row in data]
        return self.tokenizer(
            [pair[0] for pair in pairs],
            [pair[1] for pair in pairs],
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )

    def postprocess(self, data: Any) -> list[Any]:
        """One list of one class per pair."""
        (scores,) = data
        return [[self.classes[number]] for number in scores.argmax(dim=-1).tolist()]


def _pair(row: Any) -> tuple[str, str]:
    """The two sentences of one request."""
    content = row
    if "seq_0" not in row:
        content = row.get("data", row.get("body"))
        try:
            content = json.loads(content) if isinstance(content, bytes | bytearray | str) else content
        except ValueError as error:
            raise BadInput(f"the request's body is no JSON: {error}") from error
    if not isinstance(content, Mapping) or not {"seq_0", "seq_1"} <= content.keys():
        raise BadInput("send two sentences, seq_0 and seq_1")
    return _text(content["seq_0"]), _text(content["seq_1"])


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode()
    except (TypeError, ValueError) as error:
        raise BadInput(f"a sentence is text in UTF-8: {error}") from error
