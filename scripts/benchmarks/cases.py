"""The work that scripts/bench gives every server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.models import SAMPLES, Serving, even_texts, mixed_texts


@dataclass(frozen=True, slots=True)
class Case:
    """One model, how it is served, and who asks it for what. `family` is what `--only` calls it."""

    name: str
    family: str
    # A model of benchmarks.models.
    model: str
    serving: Serving
    bodies: Callable[[], Sequence[bytes]]
    clients: int
    # A good answer contains this.
    expect: bytes
    # How many times `--seconds` a measurement lasts: slow models need time for enough answers.
    stretch: float = 1.0
    # What torchd's own model-config.yaml has beside; another row, and the one to be compared with TorchServe.
    tuned: Mapping[str, Any] | None = None

    @property
    def is_text(self) -> bool:
        """Whether there is a model to run: the servers may then use all cores, for two workers."""
        return self.model in ("small", "bert")


def _kilobytes(count: int) -> Callable[[], Sequence[bytes]]:
    return lambda: [b"x" * (count * 1024)]


def _short() -> Sequence[bytes]:
    return [b'{"inputs": "fifty bytes of json, more or less ...."}']


TWO_WORKERS = Serving(workers=2, batch_size=8, batch_delay_ms=5)
CASES = (
    Case("no-op", "noop", "noop", Serving(), _short, 32, b"ok"),
    Case("no-op, batches of 32 or 5 ms", "noop", "noop", Serving(1, 32, 5), _short, 64, b"ok"),
    Case("echo of 100 KiB", "echo", "echo", Serving(), _kilobytes(100), 8, b"x"),
    Case("echo of 1 MiB", "echo", "echo", Serving(), _kilobytes(1024), 8, b"x"),
    Case("small transformer, 128 tokens", "small", "small", TWO_WORKERS, even_texts, 32, b"logits", 2.0),
    Case("BERT-base, 128 tokens", "bert", "bert", TWO_WORKERS, even_texts, 32, b"logits", 6.0),
    Case(
        "BERT-base, 8 to 128 tokens",
        "mixed",
        "bert",
        TWO_WORKERS,
        mixed_texts,
        32,
        b"logits",
        6.0,
        {"optimize": {"dtype": "bfloat16", "samples": SAMPLES}},
    ),
)
FAMILIES = tuple(dict.fromkeys(case.family for case in CASES))
