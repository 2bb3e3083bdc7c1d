"""The models of scripts/bench_gpu.py and the archives they are served from; no torch is imported here."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from torchd_archiver.packing import PackRequest, pack

SERVED = Path(__file__).with_name("served")
VOCABULARY = 1000
_BYTES = {"int32": 4, "uint8": 1}
PATIENCE_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Model:
    """A model, how large it is (arguments of its transformers configuration), and what one request holds."""

    name: str
    file: str
    sizes: dict[str, Any]
    dtype: str
    shape: tuple[int, ...]

    @property
    def payload_bytes(self) -> int:
        """The size of one request."""
        return _BYTES[self.dtype] * math.prod(self.shape)

    def payload(self) -> bytes:
        """One request, the same at every call."""
        chance = random.Random(0)
        if self.dtype == "uint8":
            return chance.randbytes(self.payload_bytes)
        return b"".join(chance.randrange(VOCABULARY).to_bytes(4, "little") for _ in range(math.prod(self.shape)))


@dataclass(frozen=True, slots=True)
class Optimization:
    """One way to run a model: the type it computes in, and whether torch.compile has it."""

    name: str
    dtype: str
    compiled: bool = False


_CLASSES = {"num_labels": 1000}
_TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_TINY_BERT = {**_TINY, "vocab_size": VOCABULARY}
_TINY_VIT = {**_CLASSES, **_TINY, "image_size": 32, "patch_size": 8}
_TINY_RESNET = {**_CLASSES, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}

MODELS = {
    "bert": Model("bert", "bert.py", {}, "int32", (128,)),
    "vit": Model("vit", "vit.py", _CLASSES, "uint8", (3, 224, 224)),
    "resnet": Model("resnet", "resnet.py", _CLASSES, "uint8", (3, 224, 224)),
}
QUICK = {
    "bert": Model("bert", "bert.py", _TINY_BERT, "int32", (16,)),
    "vit": Model("vit", "vit.py", _TINY_VIT, "uint8", (3, 32, 32)),
    "resnet": Model("resnet", "resnet.py", _TINY_RESNET, "uint8", (3, 32, 32)),
}
OPTIMIZATIONS = {
    "fp32": Optimization("fp32", "float32"),
    "fp16": Optimization("fp16", "float16"),
    "bf16": Optimization("bf16", "bfloat16"),
    "fp32-compiled": Optimization("fp32-compiled", "float32", True),
    "fp16-compiled": Optimization("fp16-compiled", "float16", True),
    "bf16-compiled": Optimization("bf16-compiled", "bfloat16", True),
}


@dataclass(frozen=True, slots=True)
class Setup:
    """How every model of a run is served."""

    # "gpu" or "cpu", as deviceType of model-config.yaml has it.
    device_type: str
    compile_backend: str
    pin_memory: bool


def config_of(model: Model, optimization: Optimization, setup: Setup) -> dict[str, Any]:
    """The model-config.yaml; numbers of workers and sizes of batches come when the model is registered."""
    compiled = {"pt2": {"compile": {"enable": True, "backend": setup.compile_backend}}}
    return {
        "deviceType": setup.device_type,
        # All workers on one GPU, the bare model's, however many there are.
        **({"deviceIds": [0]} if setup.device_type == "gpu" else {}),
        # Nobody may be refused, and a first compilation takes minutes.
        "jobQueueSize": 100_000,
        "startupTimeout": PATIENCE_SECONDS,
        "responseTimeout": PATIENCE_SECONDS,
        "optimize": {"dtype": optimization.dtype, "pin_memory": setup.pin_memory},
        "handler": {"dtype": model.dtype, "shape": list(model.shape)},
        **(compiled if optimization.compiled else {}),
    }


def write_model(folder: Path, model: Model, optimization: Optimization, setup: Setup) -> Path:
    """Writes what the archive is packed from, a folder that a handler can be loaded from; returns it."""
    source = folder / f"{model.name}-{optimization.name}"
    source.mkdir(parents=True)
    shutil.copy(SERVED / model.file, source / "model.py")
    shutil.copy(SERVED / "handler.py", source / "handler.py")
    (source / "sizes.json").write_text(json.dumps(model.sizes))
    (source / "model-config.yaml").write_text(yaml.safe_dump(config_of(model, optimization, setup)))
    return source


def pack_model(source: Path, store: Path) -> str:
    """Packs it into the model store; gives the archive's file name."""
    store.mkdir(exist_ok=True)
    request = PackRequest(
        model_name=source.name,
        version="1.0",
        handler=str(source / "handler.py"),
        model_file=source / "model.py",
        extra_files=(str(source / "sizes.json"),),
        config_file=source / "model-config.yaml",
        export_path=store,
    )
    pack(request)
    return f"{source.name}.mar"
