"""Service and its loader: a model loaded in this process, without a worker."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from torchd_workers.context import Context
from torchd_workers.device import ComputeThreads
from torchd_workers.loader import load_handler
from torchd_workers.metrics import Metrics


class Service:
    """A context and the entry point to call with it."""

    def __init__(
        self,
        model_name: str,
        model_dir: str,
        manifest: dict[str, Any] | None,
        entry_point: Callable[[Any, Context], Any],
        gpu: int | None,
        batch_size: int | None,
        limit_max_image_pixels: bool = True,
        metrics_cache: Metrics | None = None,
    ) -> None:
        self._context = Context(
            model_name,
            model_dir,
            manifest,
            batch_size or 1,
            gpu,
            limit_max_image_pixels=limit_max_image_pixels,
            metrics=metrics_cache,
        )
        self._entry_point = entry_point

    @property
    def context(self) -> Context:
        """What the handler sees beside its data."""
        return self._context


class TsModelLoader:
    """Loads a folder with a model."""

    def load(
        self,
        model_name: str,
        model_dir: str,
        handler: str,
        gpu_id: int | None = None,
        batch_size: int | None = None,
        envelope: str | None = None,
        limit_max_image_pixels: bool = True,
        metrics_cache: Metrics | None = None,
    ) -> Service:
        """Imports and initializes the handler, as a worker does."""
        path = os.path.join(model_dir, "MAR-INF", "MANIFEST.json")
        manifest = None
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                manifest = json.load(file)
        service = Service(
            model_name, model_dir, manifest, _unloaded, gpu_id, batch_size, limit_max_image_pixels, metrics_cache
        )
        service._entry_point = load_handler(handler, service.context, ComputeThreads(0), envelope or "").entry
        return service


class ModelLoaderFactory:
    """TorchServe's way to the loader."""

    @staticmethod
    def get_model_loader() -> TsModelLoader:
        """The loader."""
        return TsModelLoader()


def _unloaded(data: Any, context: Context) -> Any:
    raise RuntimeError("the model is not loaded")
