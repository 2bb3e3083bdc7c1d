"""Handlers with a trained model, and what `optimize:` makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torchd_workers.context import Context  # noqa: E402
from torchd_workers.device import ComputeThreads  # noqa: E402
from torchd_workers.handler import Handler  # noqa: E402
from torchd_workers.handlers.optimizing.optimizer import Optimizer  # noqa: E402
from torchd_workers.handlers.optimizing.report import Report  # noqa: E402
from torchd_workers.handlers.optimizing.wish import optimize_of  # noqa: E402
from torchd_workers.metrics import Metrics  # noqa: E402

FEATURES, CLASSES = 16, 4


class Classifier(torch.nn.Module):
    """Features, two wide layers, classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, 64), torch.nn.LayerNorm(64), torch.nn.ReLU(), torch.nn.Linear(64, CLASSES)
        )

    def forward(self, rows: Any) -> Any:
        return self.layers(rows)


def points(count: int, seed: int = 1) -> tuple[Any, Any]:
    """Features in clouds, and the cloud of each."""
    made = torch.Generator().manual_seed(seed)
    classes = torch.randint(CLASSES, (count,), generator=made)
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(0)) * 2
    return centres[classes] + torch.randn(count, FEATURES, generator=made), classes


@pytest.fixture(scope="session")
def trained_weights() -> dict[str, Any]:
    """Of a Classifier that knows the clouds: on random weights agreement would mean little."""
    torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rows, classes = points(512)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(rows), classes).backward()
        optimizer.step()
    unseen, right = points(512, seed=2)
    assert (model(unseen).argmax(1) == right).float().mean() > 0.95
    return model.state_dict()


@pytest.fixture
def trained(trained_weights: dict[str, Any]) -> Any:
    """A model of its own for each test."""
    model = Classifier()
    model.load_state_dict(trained_weights)
    return model.eval()


@pytest.fixture
def bodies() -> list[list[float]]:
    """Requests that the model has not been trained on, more than the 64 from which top-1 is judged."""
    return points(100, seed=3)[0].tolist()


Optimizing = Callable[..., Report]


@pytest.fixture
def optimize(tmp_path: Path) -> Optimizing:
    """Applies an `optimize` entry to a handler as the loader does; `samples` are its archive's bodies."""

    def apply(
        service: Any, entry: dict[str, Any], samples: Any = None, batch_size: int = 8, sent: Any = None
    ) -> Report:
        if samples is not None:
            (tmp_path / "samples.json").write_text(json.dumps(samples))
            entry = {"samples": "samples.json", **entry}
        metrics = Metrics(sent.append if sent is not None else [].append, "m")
        context = Context("m", str(tmp_path), {}, batch_size, None, metrics=metrics)
        optimizer = Optimizer(optimize_of({"optimize": entry}), context)
        optimizer.begin(ComputeThreads(0))
        return optimizer.optimize(service, Handler(getattr(service, "handle", lambda data, context: None), context))

    return apply
