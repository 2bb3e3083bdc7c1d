"""Packs one of the tiny models of tests/models, with the settings a test wants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torchd_archiver.packing import PackRequest, pack

MODELS = Path(__file__).resolve().parents[1] / "models"


def pack_model(folder: Path, model: str, **settings: Any) -> str:
    """Packs tests/models/`model` into `folder`/store; gives what `--models` takes.

    `settings` are model-config.yaml's.
    """
    store = folder / "store"
    store.mkdir(exist_ok=True)
    config = folder / "model-config.yaml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    pack(PackRequest(model, "1.0", str(MODELS / model / "handler.py"), config_file=config, export_path=store))
    config.unlink()
    return f"{model}={model}.mar"
