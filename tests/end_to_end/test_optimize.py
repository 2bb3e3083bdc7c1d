"""`optimize:` of an archive, seen by its clients: what is served, what is told, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.daemon import Daemon
from harness.surfaces import GrpcSurface, RestSurface

from torchd_archiver.packing import PackRequest, pack

pytest.importorskip("torch")

# It derives from nothing of ours. Its answers are differences, exact in bfloat16 unless FAR from zero.
HANDLER = """
import json

import torch

FAR = {far}


class OfTheWild:
    def initialize(self, context):
        self.model = torch.nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.model.weight.copy_(torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]]))

    def handle(self, data, context):
        rows = [row.get("body") or row.get("data") for row in data]
        rows = [json.loads(row) if isinstance(row, bytearray) else row for row in rows]
        return self.model(torch.tensor(rows) + FAR).tolist()
"""
ROWS = [[float(n), float(n % 7), 0.5] for n in range(80)]


@contextmanager
def serving(folder: Path, far: float, optimize: dict[str, Any]) -> Iterator[Daemon]:
    """A daemon whose store has the model."""
    store = folder / "store"
    store.mkdir()
    (folder / "handler.py").write_text(HANDLER.format(far=far))
    (folder / "samples.json").write_text(json.dumps(ROWS))
    (folder / "config.yaml").write_text(json.dumps({"maxRetryTimeoutInSec": 1, "optimize": optimize}))
    pack(
        PackRequest(
            "wild",
            "1.0",
            str(folder / "handler.py"),
            config_file=folder / "config.yaml",
            extra_files=[str(folder / "samples.json")],
            export_path=store,
        )
    )
    with Daemon(folder, store=store) as daemon:
        yield daemon


@pytest.mark.timeout(120)
def test_both_surfaces_tell_what_was_done(tmp_path: Path) -> None:
    with serving(tmp_path, 0, {"samples": "samples.json", "dtype": "bf16", "threads": 1, "warmup": 2}) as daemon:
        with GrpcSurface(daemon) as grpc, RestSurface(daemon) as rest:
            assert rest.register("wild.mar", initial_workers=1, synchronous=True).error is None
            for client in (grpc, rest):
                assert client.predict("wild", b"[1.0, 2.0, 0.5]").json() == [-1.0, 1.0]
            told = rest.describe("wild").json()[0]["optimization"]
            assert grpc.describe("wild").json()[0]["optimization"] == told, "the document is the same on both"
            request = grpc.management_messages.DescribeModelRequest(model_name="wild")
            typed = grpc.management.DescribeModel(request, timeout=60).models[0].optimization
    assert [(option.name, option.asked, option.applied) for option in typed.options] == [
        ("threads", "1", True),
        ("dtype", "bf16", True),
        ("warmup", "2", True),
    ]
    assert [option["name"] for option in told["options"]] == ["threads", "dtype", "warmup"]
    found = typed.options[1].difference
    assert (found.inputs, found.equal_top1, found.top1_judged) == (80, 1.0, True)
    assert found.ratio == told["options"][1]["difference"]["ratio"] <= 0.05
    assert found.standard_deviation > 1
    assert typed.unchecked == ""
    assert not typed.options[0].HasField("difference")


@pytest.mark.timeout(120)
def test_a_model_whose_answers_change_is_refused_with_the_figures(tmp_path: Path, surface: str) -> None:
    """The worker does not load, and who registers it reads why."""
    clients = {"grpc": GrpcSurface, "rest": RestSurface}
    with serving(tmp_path, 1e5, {"samples": "samples.json", "dtype": "bf16"}) as daemon:
        with clients[surface](daemon) as client:
            error = client.register("wild.mar", initial_workers=1, synchronous=True).error
    assert error is not None
    assert "optimize.dtype bf16 changes the answers too much: on 80 inputs outputs differ by up to " in error.message
    assert "(at most 0.05)" in error.message


@pytest.mark.timeout(120)
def test_without_a_wish_nothing_is_told(tmp_path: Path) -> None:
    """TorchServe's document stays as it is (reference 2.3)."""
    with serving(tmp_path, 0, {}) as daemon, RestSurface(daemon) as rest, GrpcSurface(daemon) as grpc:
        rest.register("wild.mar", initial_workers=1, synchronous=True)
        assert "optimization" not in rest.describe("wild").json()[0]
        request = grpc.management_messages.DescribeModelRequest(model_name="wild")
        assert not grpc.management.DescribeModel(request, timeout=60).models[0].HasField("optimization")
