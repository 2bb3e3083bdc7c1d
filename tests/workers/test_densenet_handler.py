"""The handler of tensors: what a client saved is read without running code (TS1, S21)."""

from __future__ import annotations

import io
import json

import pytest

from torchd_protos.frames import Failure, Loaded, Reply

torch = pytest.importorskip("torch")

MODEL = "import torch\n\n\nclass M(torch.nn.Module):\n    def forward(self, x):\n        return x * 2\n"


class Marker:
    """Its pickle calls a function that leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def read(answer):
    assert isinstance(answer, Reply)
    return torch.load(io.BytesIO(bytes(answer.body)), weights_only=True)


@pytest.fixture
def worker(start, tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    worker = start(tmp_path)
    manifest = json.dumps({"model": {"modelName": "dense", "modelFile": "model.py"}})
    assert worker.load("densenet_handler", manifest_json=manifest) == Loaded()
    return worker


def test_every_request_of_a_batch_gets_its_own_tensor(worker):
    """TorchServe answers a batch with one tensor, which is one answer too few."""
    first, second = worker.run(saved(torch.tensor([1.0, 2.0])), saved(torch.tensor([3.0, 4.0])))
    assert torch.equal(read(first), torch.tensor([[2.0, 4.0]]))
    assert torch.equal(read(second), torch.tensor([[6.0, 8.0]]))
    assert len(bytes(first.body)) == len(saved(torch.tensor([[2.0, 4.0]])))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda path: b"", id="nothing"),
        pytest.param(lambda path: b"junk" * 100, id="junk"),
        pytest.param(lambda path: saved(torch.ones(3))[:200], id="half a file"),
        pytest.param(lambda path: saved(Marker(path)), id="an object with code"),
        pytest.param(lambda path: saved([torch.ones(1), Marker(path)]), id="code beside a tensor"),
        pytest.param(lambda path: saved({"a": torch.ones(1)}), id="a dict"),
        pytest.param(lambda path: saved(torch.eye(3).to_sparse()), id="a sparse tensor"),
    ],
)
def test_what_is_no_tensor_is_the_clients_mistake_and_runs_nothing(worker, tmp_path, body):
    marker = tmp_path / "marker"
    failure = worker.ask(body(str(marker)))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.status) == ("PredictionFailed", 400)
    assert failure.message.startswith("the input ")
    assert not marker.exists()
    assert torch.equal(read(worker.ask(saved(torch.ones(1)))), torch.full((1, 1), 2.0))


def test_tensors_of_different_shapes_are_answered_one_by_one(worker):
    first, second = worker.run(saved(torch.ones(1)), saved(torch.ones(2)))
    assert (read(first).shape, read(second).shape) == ((1, 1), (1, 2))


def test_one_clients_mistake_is_told_to_that_client_only(worker):
    """Section 13, 10: in TorchServe one bad item fails the whole batch."""
    good, bad, other = worker.run(saved(torch.ones(1)), b"junk", saved(torch.zeros(1)))
    assert (read(good).tolist(), read(other).tolist()) == ([[2.0]], [[0.0]])
    assert isinstance(bad, Failure)
    assert (bad.kind, bad.status, bad.message) == (
        "PredictionFailed",
        400,
        "the input is not what torch.save writes of one tensor",
    )
