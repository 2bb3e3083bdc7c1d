"""The model of scripts/bench_batching.py: a batch costs what model-config.yaml says; every answer is its request."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Cost = Callable[[int], object]


def sleep(settings: dict[str, Any]) -> Cost:
    """A device that this machine does not have: so long per batch and so long per item, without a core."""
    batch_seconds, item_seconds = settings["batch_ms"] / 1000, settings["item_ms"] / 1000
    return lambda items: time.sleep(batch_seconds + item_seconds * items)


def mlp(settings: dict[str, Any]) -> Cost:
    """Four wide layers: reading the weights is the price, so a batch costs little more than one item."""
    import torch

    layers = [layer for _ in range(4) for layer in (torch.nn.Linear(1024, 1024), torch.nn.ReLU())]
    return _forward(torch.nn.Sequential(*layers), (1024,))


def transformer(settings: dict[str, Any]) -> Cost:
    """Two encoder layers over 32 tokens: the work grows with the items, a batch saves little."""
    import torch

    layer = torch.nn.TransformerEncoderLayer(256, 4, dim_feedforward=1024, batch_first=True)
    return _forward(torch.nn.TransformerEncoder(layer, 2), (32, 256))


COSTS = {"sleep": sleep, "mlp": mlp, "transformer": transformer}


class CostHandler:
    """Spends what a batch costs."""

    def initialize(self, context: Any) -> None:
        """Builds the kind of cost the configuration names."""
        settings = context.model_yaml_config["handler"]
        self._spend = COSTS[settings["kind"]](settings)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:
        """One answer per request."""
        self._spend(len(data))
        return [row.get("data", row.get("body")) for row in data]


def _forward(model: Any, shape: tuple[int, ...]) -> Cost:
    import torch

    model.eval()

    def spend(items: int) -> object:
        with torch.inference_mode():
            return model(torch.zeros(items, *shape))

    return spend
