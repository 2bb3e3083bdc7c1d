"""Files for the models of unit tests."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import urlopen

CACHE = Path(".cache")


def download_model(model_url: str, model_dir: Path) -> None:
    """Puts the file behind a URL into `model_dir` as model.pt; it is fetched once."""
    cached = CACHE / Path(urlparse(model_url).path).name
    if not cached.exists():
        CACHE.mkdir(exist_ok=True)
        with urlopen(model_url) as source, cached.open("wb") as target:
            shutil.copyfileobj(source, target)
    shutil.copy(cached, Path(model_dir) / "model.pt")


def copy_files(src_dir: Path, dst_dir: Path, files: Mapping[str, str]) -> None:
    """Copies each file under its other name."""
    for name, other in files.items():
        shutil.copyfile(Path(src_dir) / name, Path(dst_dir) / other)
