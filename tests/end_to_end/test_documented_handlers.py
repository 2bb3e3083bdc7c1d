"""Handlers written as TorchServe's documentation teaches, packed by its commands, run unmodified by the daemon."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.daemon import Daemon
from harness.sample_images import DATA, KITTEN
from harness.surfaces import GrpcSurface, RestSurface

torch = pytest.importorskip("torch")

NETWORK = '''
import torch
from torch import nn


class TinyImageNet(nn.Module):
    """Conv, pool, linear: enough to have a thousand scores."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 7, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
        self.classifier = nn.Linear(128, 1000)

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))
'''
BAG = """
import torch.nn as nn


class TextClassificationModel(nn.Module):
    def __init__(self, vocab_size=6, embed_dim=8, num_class=2):
        super(TextClassificationModel, self).__init__()
        self.embedding = nn.EmbeddingBag(vocab_size, embed_dim, sparse=False)
        self.fc = nn.Linear(embed_dim, num_class)

    def forward(self, text, offsets):
        return self.fc(self.embedding(text, offsets))
"""
VISION = """
import io

import numpy as np
import torch
from PIL import Image
from ts.torch_handler.image_classifier import ImageClassifier


class DigitHandler(ImageClassifier):
    topk = 3

    @staticmethod
    def image_processing(image):
        pixels = np.array(image.convert("L").resize((28, 28)), dtype=np.float32) / 255
        return torch.from_numpy(pixels)[None]

    def initialize(self, context):
        torch.manual_seed(0)
        self.context = context
        self.device = torch.device("cpu")
        self.model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
        self.initialized = True

    def postprocess(self, data):
        return data.argmax(1).tolist()
"""
TWO_INPUTS = """
from ts.torch_handler.base_handler import BaseHandler


class QuestionAnswering(BaseHandler):
    def initialize(self, context):
        self.initialized = True

    def preprocess(self, requests):
        return [(row.get("question").decode("utf-8"), row.get("context").decode("utf-8")) for row in requests]

    def inference(self, data, *args, **kwargs):
        return [{"question": question, "words": len(text.split())} for question, text in data]

    def postprocess(self, data):
        return data
"""
STREAMING = """
from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data, context):
    if type(data) is list:
        for i in range(3):
            send_intermediate_predict_response(["hello "], context.request_ids, "Intermediate success", 200, context)
        return ["hello world "]
"""
METRICS = """
from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes
from ts.torch_handler.base_handler import BaseHandler


class CustomMetrics(BaseHandler):
    def initialize(self, context):
        metrics = context.metrics
        metrics.add_metric_to_cache(
            metric_name="RequestBytes", unit="B", dimension_names=["ModelName", "Level"], metric_type=MetricTypes.GAUGE
        )
        self.initialized = True

    def handle(self, data, context):
        metrics = context.metrics
        metrics.add_counter("InferenceRequestCount", 1, None, [Dimension("Stage", "Handle")])
        metrics.add_time("PreprocessCallTime", 1.5, None, "ms")
        metrics.add_size("SizeOfImage", 4, None, "kB")
        metrics.add_percent("HandlerMethodTime", 50, None)
        metrics.add_error("TestErrorCount", 1)
        request_bytes = metrics.get_metric("RequestBytes", MetricTypes.GAUGE)
        request_bytes.add_or_update(len(data[0]["body"]), [context.model_name, "Model"])
        return [len(metrics.cache_keys()) >= 6 for _ in data]
"""
ERRORS = """
from ts.service import PredictionException
from ts.torch_handler.base_handler import BaseHandler


class Errors(BaseHandler):
    def initialize(self, context):
        self.initialized = True

    def handle(self, data, context):
        body = bytes(data[0].get("body"))
        if body == b"status":
            context.set_response_status(code=418, phrase="a teapot", idx=0)
            context.set_response_header(0, "x-kind", "teapot")
            return [{"error": "short and stout"}]
        if body == b"exception":
            raise PredictionException("Some Prediction Error", 513)
        raise ValueError("anything else")
"""
LAZY = """
model = None


def handle(data, context):
    global model
    if not model:
        properties = context.system_properties
        model = {"dir": properties.get("model_dir"), "calls": 0}
    if data is None:
        return None
    model["calls"] += 1
    return ["%s %d" % (context.model_name, model["calls"])] * len(data)
"""
SOURCES = {
    "vision": VISION,
    "two_inputs": TWO_INPUTS,
    "streaming": STREAMING,
    "custom_metrics": METRICS,
    "errors": ERRORS,
    "lazy": LAZY,
}


def run(folder: Path, environment: dict[str, str], command: str) -> str:
    """One line of a shell, as the documentation has it; its output."""
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=True
    )
    return done.stdout


@pytest.fixture
def workshop(tmp_path: Path) -> Path:
    """Weights, vocabulary, names and handlers, as their authors have them before they pack."""
    torch.manual_seed(1)
    for source, cls, name in ((NETWORK, "TinyImageNet", "model"), (BAG, "TextClassificationModel", "text_model")):
        (tmp_path / f"{name}.py").write_text(source)
        space: dict[str, object] = {}
        exec(source, space)
        torch.save(space[cls]().state_dict(), tmp_path / ("x.pth" if name == "model" else "text.pth"))  # type: ignore[operator]
    torch.save({"<unk>": 0, "new": 1, "york": 2, "new york": 3, "is": 4, "big": 5}, tmp_path / "source_vocab.pt")
    shutil.copy(DATA / "imagenet_index_to_name.json", tmp_path / "index_to_name.json")
    shutil.copy(KITTEN, tmp_path / "kitten_small.jpg")
    for name, source in SOURCES.items():
        (tmp_path / f"{name}.py").write_text(source)
    (tmp_path / "model_store").mkdir()
    return tmp_path


@pytest.mark.needs("curl")
def test_the_walk_from_a_network_to_five_names_with_probabilities(workshop: Path) -> None:
    """Seed 004, and issue 3's second condition: a default handler, an image, five classes as JSON."""
    daemon = Daemon(workshop, command="torchserve", store=Path("model_store"), models=["x.mar"])
    run(
        workshop,
        daemon.environment,
        "torch-model-archiver --model-name x --version 1.0 --handler image_classifier --model-file model.py"
        " --serialized-file x.pth --extra-files index_to_name.json --export-path model_store",
    )
    with daemon:
        port = daemon.host_and_port("inference")[1]
        url = f"http://127.0.0.1:{port}/predictions/x"
        answer = json.loads(run(workshop, daemon.environment, f"curl -sf {url} -T kitten_small.jpg"))
        form = json.loads(run(workshop, daemon.environment, f"curl -sf {url} -F data=@kitten_small.jpg"))
        junk = run(workshop, daemon.environment, f"curl -s -o /dev/null -w '%{{http_code}}' {url} -T model.py")
    known = {name for _, name in json.loads((DATA / "imagenet_index_to_name.json").read_text()).values()}
    assert len(answer) == 5
    assert set(answer) <= known
    assert all(0 < probability < 1 for probability in answer.values())
    assert list(answer.values()) == sorted(answer.values(), reverse=True)
    assert form == answer
    assert junk == "400"


@pytest.fixture
def served(workshop: Path) -> Iterator[Daemon]:
    """A daemon with every documented handler but the walk's."""
    names = ["text_classifier", *SOURCES]
    daemon = Daemon(workshop, command="torchserve", store=Path("model_store"), models=[f"{name}.mar" for name in names])
    with (workshop / "config.properties").open("a") as config:
        config.write("default_workers_per_model=1\n")  # one process counts the calls
    pack = "torch-model-archiver --version 1.0 --export-path model_store --model-name"
    run(
        workshop,
        daemon.environment,
        f"{pack} text_classifier --handler text_classifier --model-file text_model.py --serialized-file text.pth"
        " --extra-files source_vocab.pt",
    )
    for name in SOURCES:
        run(workshop, daemon.environment, f"{pack} {name} --handler {name}.py")
    with daemon:
        yield daemon


@pytest.mark.needs("curl")
@pytest.mark.timeout(300)
def test_documented_handlers_answer_as_their_authors_expect(served: Daemon, workshop: Path) -> None:
    """Issue 3's fourth condition."""
    inference = f"http://127.0.0.1:{served.host_and_port('inference')[1]}/predictions"

    def curl(arguments: str) -> str:
        return run(workshop, served.environment, f"curl -s {arguments}")

    def sent(model: str, body: str, *options: str) -> str:
        octets = "-H 'content-type: application/octet-stream' --data-binary"
        return curl(f"{' '.join(options)} {inference}/{model} {octets} '{body}'")

    digit = curl(f"{inference}/vision -T {DATA / 'digit_3.png'}")
    assert digit in [str(number) for number in range(10)]
    text = json.loads(sent("text_classifier", "New York is big"))
    assert set(text) == {"0", "1"}
    assert sum(text.values()) == pytest.approx(1)
    two = json.loads(curl(f"{inference}/two_inputs -F question='Who?' -F context='one two three'"))
    assert two == {"question": "Who?", "words": 3}
    assert sent("streaming", "x", "-N") == "hello hello hello hello world "
    assert sent("custom_metrics", "abc") == "true"
    assert [sent("lazy", "x") for _ in range(2)] == ["lazy 1", "lazy 2"]
    teapot = sent("errors", "status", "-i").replace("\r", "")
    assert teapot.startswith("HTTP/1.1 418 a teapot\n")
    assert "x-kind: teapot\n" in teapot
    assert json.loads(teapot.partition("\n\n")[2]) == {"error": "short and stout"}
    failed = json.loads(sent("errors", "exception"))
    assert (failed["code"], failed["message"]) == (513, "Some Prediction Error")
    assert sent("errors", "other", "-o /dev/null -w '%{http_code}'") == "503"
    with GrpcSurface(served) as grpc, RestSurface(served) as rest:
        assert list(grpc.stream("streaming", b"x")) == [b"hello "] * 3 + [b"hello world "]
        assert grpc.predict("lazy", b"x").body == b"lazy 3"
        assert rest.predict("two_inputs", b"").error is not None


@pytest.mark.needs("curl")
def test_every_model_is_behind_the_envelope_of_config_properties(workshop: Path) -> None:
    """Section 6.3: service_envelope; the answer is the envelope's, and a description goes round it."""
    (workshop / "double.py").write_text(
        "def handle(data, context):\n    return data and [[2 * number for number in row] for row in data]\n"
    )
    daemon = Daemon(workshop, command="torchserve", store=Path("model_store"), models=["double.mar"])
    with (workshop / "config.properties").open("a") as config:
        config.write("service_envelope=kserve\n")
    pack = "torch-model-archiver --version 1.0 --export-path model_store --model-name"
    run(workshop, daemon.environment, f"{pack} double --handler double.py")
    with daemon:
        url = f"http://127.0.0.1:{daemon.host_and_port('inference')[1]}/predictions/double"
        body = "-H 'content-type: application/json' -d '{\"instances\": [[1], [2, 3]]}'"
        answer = json.loads(run(workshop, daemon.environment, f"curl -sf {url} {body}"))
    assert answer == {"predictions": [[2], [4, 6]]}


@pytest.mark.needs("curl")
def test_default_handlers_explain_over_rest(workshop: Path) -> None:
    """Section 2.2: /explanations/<model>, and KServe's :explain; captum works in the worker, beside predictions."""
    pytest.importorskip("captum")
    daemon = Daemon(workshop, command="torchserve", store=Path("model_store"), models=["x.mar", "words.mar"])
    pack = "torch-model-archiver --version 1.0 --export-path model_store --model-name"
    for arguments in (
        "x --handler image_classifier --model-file model.py --serialized-file x.pth",
        "words --handler text_classifier --model-file text_model.py --serialized-file text.pth"
        " --extra-files source_vocab.pt",
    ):
        run(workshop, daemon.environment, f"{pack} {arguments}")
    with daemon:
        url = f"http://127.0.0.1:{daemon.host_and_port('inference')[1]}"

        def asked(path: str, arguments: str) -> Any:
            return json.loads(run(workshop, daemon.environment, f"curl -s {url}{path} {arguments}"))

        pixels = asked("/explanations/x", "-F data=@kitten_small.jpg -F target=3")
        words = asked("/explanations/words", "-F data='New York is big' -F target=1")
        by_kserve = asked("/v1/models/words:explain", "-F data='New York is big' -F target=1")
        predicted = asked("/predictions/words", "-F data='New York is big'")
    assert torch.tensor(pixels).shape == (3, 224, 224)
    assert words["words"] == ["new", "york", "is", "big"]
    assert words["importances"]
    assert by_kserve == words
    assert set(predicted) == {"0", "1"}
