"""Writes tests/data/image_tensors.json: what torchvision's own transforms make of the sample images.

    python -m pip download --no-deps torchvision==0.26.0 && unzip torchvision-*.whl 'torchvision/transforms/*' -d there
    PYTHONPATH=tests python -m harness.record_image_tensors there

Only the Python files of `torchvision.transforms` are needed: their PIL functions import without its compiled library,
which must fit the torch that is installed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.sample_images import DATA, SIZES, sample


def main() -> None:
    """Records."""
    transforms = _torchvision(Path(sys.argv[1]))
    classifier = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    recorded = {f"{width}x{height}": fingerprint(classifier(sample((width, height)))) for width, height in SIZES}
    (DATA / "image_tensors.json").write_text(json.dumps(recorded, indent=1) + "\n")


def fingerprint(tensor: Any) -> dict[str, Any]:
    """A tensor's shape, the hash of its bytes, and the middle of its rows for a reader."""
    rows, columns = tensor.shape[1] // 2, tensor.shape[2] // 2
    return {
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest(),
        "middle": [round(value, 5) for value in tensor[:, rows, columns].tolist()],
    }


def _torchvision(folder: Path) -> Any:
    for name in ("torchvision", "torchvision.transforms"):
        package = ModuleType(name)
        package.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = package
    utils: Any = ModuleType("torchvision.utils")
    utils._log_api_usage_once = utils._Image_fromarray = lambda *_: None
    sys.modules["torchvision.utils"] = utils
    return importlib.import_module("torchvision.transforms.transforms")


if __name__ == "__main__":
    main()
