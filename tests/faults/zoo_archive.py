"""Packs the zoo: one archive whose handler obeys its requests (faults/zoo/zoo_handler.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

from torchd_archiver.packing import PackRequest, pack

HANDLER = Path(__file__).parent / "zoo" / "zoo_handler.py"


def pack_zoo(
    store: Path,
    ledger: Path,
    *,
    name: str = "zoo",
    version: str = "1.0",
    file_name: str = "",
    handler: dict[str, Any] | None = None,
    **settings: Any,
) -> str:
    """Writes a zoo archive into `store` and returns its file name.

    `settings` are model-config.yaml's (minWorkers, batchSize, jobQueueSize...); `handler` is what the handler reads.
    """
    store.mkdir(parents=True, exist_ok=True)
    workshop = store.parent / f"packing-{uuid4().hex[:8]}"
    workshop.mkdir()
    config = workshop / "model-config.yaml"
    # JSON is YAML.
    config.write_text(json.dumps({**settings, "handler": {"ledger": str(ledger), **(handler or {})}}))
    made = pack(
        PackRequest(model_name=name, version=version, handler=str(HANDLER), config_file=config, export_path=workshop)
    )
    target = store / (file_name or f"{name}-{version}.mar")
    Path(made).rename(target)
    config.unlink()
    workshop.rmdir()
    return target.name


def wish(request: str, do: str = "echo", **more: Any) -> bytes:
    """A request to the zoo."""
    return json.dumps({"id": request, "do": do, **more}).encode()
