"""The models of scripts/bench: their archives, and what they are asked. Imports torch only where weights are made."""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import shutil
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from torchd_archiver.packing import PackRequest, pack

SERVED = Path(__file__).with_name("served")
WEIGHTS = "model.safetensors"
# What an optimisation is checked on when the model loads: texts of mixed length, one a line.
SAMPLES = "samples.jsonl"
SAMPLE_TEXTS = 64
SIZES: Mapping[str, Mapping[str, int]] = {
    "small": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024},
    "bert": {},  # transformers' default is BERT-base
}
HANDLERS = {"noop": "noop_handler.py", "echo": "echo_handler.py", "small": "text_handler.py", "bert": "text_handler.py"}
LONGEST, SHORTEST = 128, 8
# Tokens that every text has beside its words: the first and the last.
FRAME_TOKENS = 2
WORDS = 1000


@dataclass(frozen=True, slots=True)
class Serving:
    """The part of a model-config.yaml that TorchServe knows too, and what only torchd knows."""

    workers: int = 1
    batch_size: int = 1
    batch_delay_ms: int = 0
    extra: Mapping[str, Any] | None = None

    def config(self) -> dict[str, Any]:
        """The model-config.yaml."""
        return {
            "minWorkers": self.workers,
            "maxWorkers": self.workers,
            "batchSize": self.batch_size,
            "maxBatchDelay": self.batch_delay_ms,
            "responseTimeout": 120,
            "startupTimeout": 300,
            **(self.extra or {}),
        }


def make(name: str, folder: Path, serving: Serving | None = None) -> Path:
    """The archive NAME.mar in `folder`, of the model `noop`, `echo`, `small` or `bert`.

    The text models hold random weights as safetensors; weights that an earlier call has made in this folder are used.
    """
    source = source_of(folder, name)
    source.mkdir(parents=True, exist_ok=True)
    config = source / "model-config.yaml"
    config.write_text(yaml.safe_dump((serving or Serving()).config()))
    if name not in SIZES:
        return pack(_request(name, folder, config))
    sizes, model, samples = source / "text_sizes.json", source / "text_model.py", source / SAMPLES
    sizes.write_text(json.dumps(SIZES[name]))
    samples.write_bytes(b"".join(body + b"\n" for body in mixed_texts(SAMPLE_TEXTS)))
    shutil.copy(SERVED / model.name, model)
    weights = source / WEIGHTS
    if not weights.exists():
        # torch, once here, would be in every measurement's way.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as once:
            once.submit(write_weights, source, weights).result()
    return pack(_request(name, folder, config, weights, model, (str(sizes), str(samples))))


def source_of(folder: Path, name: str) -> Path:
    """The folder that the archive NAME.mar in `folder` is packed from."""
    return folder / f"{name}-source"


def _request(
    name: str,
    folder: Path,
    config: Path,
    weights: Path | None = None,
    model: Path | None = None,
    extra_files: tuple[str, ...] = (),
) -> PackRequest:
    return PackRequest(
        model_name=name,
        version="1.0",
        handler=str(SERVED / HANDLERS[name]),
        serialized_file=weights,
        model_file=model,
        extra_files=extra_files,
        config_file=config,
        export_path=folder,
        # Random numbers do not get smaller.
        archive_format="zip-store",
        force=True,
    )


def write_weights(source: Path, path: Path) -> None:
    """Saves the weights of the model in the folder `source`."""
    from safetensors.torch import save_file

    made = loaded_model(source)
    unfinished = path.with_suffix(".part")
    save_file({key: value.contiguous() for key, value in made.state_dict().items()}, unfinished)
    unfinished.rename(path)


def loaded_model(source: Path) -> Any:
    """The bare model of the folder `source`, in this process, with its weights where they are there."""
    import importlib.util

    from safetensors.torch import load_file

    spec = importlib.util.spec_from_file_location("text_model", source / "text_model.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(source / "text_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TextModel()
    if (source / WEIGHTS).exists():
        model.load_state_dict(load_file(source / WEIGHTS))
    return model.eval()


def text_body(tokens: int, chance: random.Random) -> bytes:
    """A request for a text of so many tokens."""
    words = " ".join(f"w{chance.randrange(WORDS)}" for _ in range(tokens - FRAME_TOKENS))
    return json.dumps({"text": words}).encode()


def even_texts(count: int = 16) -> list[bytes]:
    """Texts of 128 tokens each."""
    chance = random.Random(7)
    return [text_body(LONGEST, chance) for _ in range(count)]


def mixed_texts(count: int = 256) -> list[bytes]:
    """Texts of 8 to 128 tokens, most of them short and a few long, as people write: log-normal, with a median of 28."""
    chance = random.Random(7)
    lengths = (round(chance.lognormvariate(math.log(28), 0.75)) for _ in range(count))
    return [text_body(min(max(length, SHORTEST), LONGEST), chance) for length in lengths]
