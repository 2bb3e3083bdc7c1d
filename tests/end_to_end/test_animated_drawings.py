"""Seed 003's case study: its detection handler (only its slips of the pen corrected), its metrics, both ways out."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from harness.daemon import Daemon

DATA = Path(__file__).resolve().parents[1] / "data"
HANDLER = """
import io
import json
import os

import cv2
import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler


class MyModelHandler(BaseHandler):
    def initialize(self, context):
        self.context = context
        self.manifest = context.manifest
        properties = context.system_properties
        model_dir = properties.get("model_dir")
        serialized_file = self.manifest["model"]["serializedFile"]
        model_pt_path = os.path.join(model_dir, serialized_file)

        self.device = torch.device(
            "cuda:" + str(properties.get("gpu_id"))
            if torch.cuda.is_available() and properties.get("gpu_id") is not None
            else "cpu"
        )
        self.model = torch.jit.load(model_pt_path, map_location=self.device)

        self.model = self.model.half()

    def preprocess(self, data):
        inputs = []
        for request in data:
            request_body = request.get("body")

            input_ = io.BytesIO(request_body)
            image = cv2.imdecode(np.frombuffer(input_.read(), np.uint8), 1)
            input = torch.Tensor(image).permute(2, 0, 1)
            input = input.to(self.device)
            input = input.half()
            inputs.append({"image": input})
            self.context.metrics.add_size("SizeOfImage", len(request_body) / 1024, None, "kB")

        return inputs

    def inference(self, inputs):
        return [self.model(**input) for input in inputs]

    def postprocess(self, inference_outputs):
        self.context.metrics.add_counter("DrawingsFound", len(inference_outputs))
        responses = []
        for inference_output in inference_outputs:
            responses_json = {
                "classes": inference_output["pred_classes"].tolist(),
                "scores": inference_output["scores"].tolist(),
                "boxes": inference_output["pred_boxes"].tolist(),
            }
            responses.append(json.dumps(responses_json))

        return responses
"""
ONE_WORKER = ["default_workers_per_model=1"]
METRICS = """\
mode: prometheus
dimensions:
  - &model_name "ModelName"
  - &level "Level"
model_metrics:
  counter:
    - name: DrawingsFound
      unit: Count
      dimensions: [*model_name, *level]
  gauge:
    - name: SizeOfImage
      unit: Kilobytes
      dimensions: [*model_name, *level]
    - name: HandlerTime
      unit: ms
      dimensions: [*model_name, *level]
    - name: PredictionTime
      unit: ms
      dimensions: [*model_name, *level]
"""


def detector(path: Path) -> None:
    """A TorchScript program with the case study's interface: an image in, classes, scores and boxes out."""
    import torch

    class Detector(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = torch.nn.Conv2d(3, 4, 8, stride=8)
            self.head = torch.nn.Linear(4, 6)

        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            found = self.head(self.features(image.unsqueeze(0) / 255).mean(dim=[2, 3]))
            return {
                "pred_classes": found[:, :1].argmax(dim=1),
                "scores": torch.sigmoid(found[:, 1]),
                "pred_boxes": found[:, 2:],
            }

    torch.manual_seed(0)
    torch.jit.script(Detector().eval()).save(str(path))  # type: ignore[no-untyped-call]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A model store with the packed archive."""
    folder = tmp_path / "model_store"
    folder.mkdir()
    detector(tmp_path / "detector.pt")
    (tmp_path / "handler.py").write_text(HANDLER)
    (tmp_path / "metrics.yaml").write_text(METRICS)
    daemon = Daemon(tmp_path)
    subprocess.run(
        "torch-model-archiver --model-name drawings --version 1.0 --serialized-file detector.pt --handler handler.py "
        "--export-path model_store",
        shell=True,
        check=True,
        cwd=tmp_path,
        env=daemon.environment,
    )
    return folder


def predict_twice(daemon: Daemon) -> None:
    """Two pictures, and what the detector must say of them."""
    host, port = daemon.host_and_port("inference")
    for _ in range(2):
        body = (DATA / "kitten_small.jpg").read_bytes()
        image = Request(f"http://{host}:{port}/predictions/drawings", body, {"Content-Type": "image/jpeg"})
        with urlopen(image) as answer:
            found = json.loads(answer.read())
        assert found["classes"] == [0]
        assert len(found["boxes"][0]) == 4
        assert 0 < found["scores"][0] < 1


@pytest.mark.timeout(240)
def test_the_case_studys_metrics_are_in_the_log_files(store: Path, tmp_path: Path) -> None:
    """Seed 003: system metrics in ts_metrics.log, the handler's own in model_metrics.log; metrics_mode=log."""
    with Daemon(
        tmp_path / "log",
        command="torchserve",
        store=store,
        models=["drawings.mar"],
        config=[*ONE_WORKER, "metrics_mode=log", f"metrics_config={tmp_path / 'metrics.yaml'}"],
    ) as daemon:
        predict_twice(daemon)
    model_metrics = (daemon.folder / "logs" / "model_metrics.log").read_text()
    assert model_metrics.count("DrawingsFound.Count:1.0|#ModelName:drawings,Level:Model|#") == 2
    assert model_metrics.count("SizeOfImage.Kilobytes:7.1") == 2
    assert "HandlerTime.ms:" in model_metrics or "HandlerTime.Milliseconds:" in model_metrics
    assert (daemon.folder / "logs" / "ts_metrics.log").exists()


@pytest.mark.timeout(240)
def test_the_case_studys_metrics_are_scraped_from_8082(store: Path, tmp_path: Path) -> None:
    """Seed 003: `curl http://127.0.0.1:8082/metrics`; metrics_mode=prometheus."""
    with Daemon(
        tmp_path / "prometheus",
        command="torchserve",
        store=store,
        models=["drawings.mar"],
        arguments=["--disable-token-auth"],
        config=[
            "default_workers_per_model=1",
            "metrics_mode=prometheus",
            f"metrics_config={tmp_path / 'metrics.yaml'}",
        ],
    ) as daemon:
        predict_twice(daemon)
        host, port = daemon.host_and_port("metrics")
        with urlopen(f"http://{host}:{port}/metrics") as answer:
            text = answer.read().decode()
    lines = [line for line in text.splitlines() if line.startswith(("DrawingsFound{", "SizeOfImage{"))]
    assert any(line.startswith("DrawingsFound{") and line.endswith("} 2.0") for line in lines), text
    assert any(line.startswith("SizeOfImage{") and "7.1" in line for line in lines), text
