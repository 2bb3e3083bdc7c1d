"""The envelope kservev2 of config.properties before handlers of users' and of ours, asked by Triton's clients."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from end_to_end.test_stock_clients import run
from harness.daemon import Daemon
from harness.surfaces import RestSurface

from torchd_archiver.packing import PackRequest, pack

DOUBLING = """
import numpy as np


def handle(data, context):
    if data is not None:
        return [2 * np.array(row["data"], np.float32) for row in data]
"""
# Bytes reach a handler as base64, as TorchServe hands them on.
ECHO = """
from base64 import b64decode


def handle(data, context):
    return data and [[b64decode(text).decode() for text in row["data"]] for row in data]
"""
LINEAR = """
import torch


class Linear(torch.nn.Linear):
    def __init__(self):
        super().__init__(3, 1, bias=False)
        torch.nn.init.ones_(self.weight)
"""
CONFIG = "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\nmaxBatchDelay: 20\n"


@pytest.mark.timeout(180)
def test_open_inference_clients_reach_handlers_behind_the_envelope(tmp_path: Path) -> None:
    """Section 0 (11): an output for each input, by its place; batches of several requests keep theirs apart."""
    pytest.importorskip("torch")
    store = tmp_path / "store"
    store.mkdir()
    for name, text in (("doubling.py", DOUBLING), ("echo.py", ECHO), ("linear.py", LINEAR), ("config.yaml", CONFIG)):
        (tmp_path / name).write_text(text)
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import torch; from linear import Linear; torch.save(Linear().state_dict(), 'linear.pth')",
        ],
        cwd=tmp_path,
        check=True,
    )
    shared = {"version": "1.0", "config_file": tmp_path / "config.yaml", "export_path": store}
    for name in ("doubling", "echo"):
        pack(PackRequest(model_name=name, handler=str(tmp_path / f"{name}.py"), **shared))
    pack(
        PackRequest(
            model_name="linear",
            handler="base_handler",
            model_file=tmp_path / "linear.py",
            serialized_file=tmp_path / "linear.pth",
            **shared,
        )
    )
    models = ("doubling.mar", "echo.mar", "linear.mar")
    config = ("service_envelope=kservev2",)
    with Daemon(tmp_path, command="torchserve", store=store, models=models, config=config) as daemon:
        addresses = ("{}:{}".format(*daemon.host_and_port(name)) for name in ("grpc_inference", "inference"))
        run(sys.executable, "envelope.py", *addresses)
        less = RestSurface(daemon).request("POST", "/v2/models/doubling/infer", b'{"inputs": [{"name": "x"}]}')
        assert less.error is not None
        assert (less.error.code, less.error.message) == (400, "an input of the request lacks 'data'")
