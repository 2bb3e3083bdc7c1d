"""BaseHandler in a real worker on the CPU: every kind of weights, and what it says when they do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from torchd_protos.frames import Batch, Call, Header, Item, Loaded, Metric, Part, Settings

torch = pytest.importorskip("torch")
LINEAR = Path(__file__).resolve().parents[1] / "models" / "linear"
ROWS = [[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]


class Linear(torch.nn.Module):
    """The same layer as tests/models/linear/model.py, to say what is expected."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, rows):
        return self.layer(rows)


@pytest.fixture
def model():
    torch.manual_seed(7)
    return Linear().eval()


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(LINEAR, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def load(worker, handler="handler.py", config="{}", threads=0, **files):
    manifest = json.dumps({"model": {"modelName": "linear", "handler": handler, **files}})
    return worker.load(handler, manifest_json=manifest, config_json=config, threads=threads)


def scores(answers):
    return [json.loads(bytes(answer.body))["scores"] for answer in answers]


def check_answers(worker, model):
    answers = scores(worker.run(*(json.dumps(row).encode() for row in ROWS)))
    assert torch.allclose(torch.tensor(answers), model(torch.tensor(ROWS)))


def test_an_eager_model_answers_with_the_weights_of_its_state_dict(start, folder, model):
    torch.save(model.state_dict(), folder / "weights.pt")
    worker = start(folder)
    assert load(worker, modelFile="model.py", serializedFile="weights.pt") == Loaded()
    check_answers(worker, model)
    assert "HandlerTime" in [message.name for message in worker.seen if isinstance(message, Metric)]


def test_weights_in_the_old_format_are_read_too(start, folder, model):
    torch.save(model.state_dict(), folder / "weights.bin", _use_new_zipfile_serialization=False)
    worker = start(folder)
    assert load(worker, modelFile="model.py", serializedFile="weights.bin") == Loaded()
    check_answers(worker, model)


def test_safetensors_weights_are_read(start, folder, model):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(model.state_dict(), folder / "weights.safetensors")
    worker = start(folder)
    assert load(worker, modelFile="model.py", serializedFile="weights.safetensors") == Loaded()
    check_answers(worker, model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_program_needs_no_model_file(start, folder, model):
    torch.jit.script(model).save(folder / "program.pt")
    worker = start(folder)
    assert load(worker, serializedFile="program.pt") == Loaded()
    check_answers(worker, model)


def test_the_base_handler_alone_serves_a_model(start, folder, model):
    torch.save(model.state_dict(), folder / "weights.pt")
    worker = start(folder)
    assert load(worker, "base_handler", modelFile="model.py", serializedFile="weights.pt") == Loaded()
    (answer,) = worker.run(json.dumps(ROWS[0]).encode())
    assert torch.allclose(torch.tensor(json.loads(bytes(answer.body))), model(torch.tensor(ROWS[0])))


def test_a_profiled_step_leaves_its_time(start, folder):
    worker = start(folder)
    assert load(worker, config='{"handler": {"profile": true}}', modelFile="model.py") == Loaded()
    worker.run(b"[1, 2, 3.0]")
    assert "ts_handler_preprocess" in [message.name for message in worker.seen if isinstance(message, Metric)]


def test_compute_threads_follow_the_daemon(start, folder):
    (folder / "handler.py").write_text(
        "import torch\n\n\ndef handle(data, context):\n    return data and [str(torch.get_num_threads())]\n"
    )
    worker = start(folder)
    assert load(worker, threads=1) == Loaded()
    assert worker.ask(b"").body == b"1"
    worker.send(Settings(threads=2))
    assert worker.ask(b"").body == b"2"


def test_a_tensor_answer_is_what_torch_save_writes(start, folder):
    (folder / "handler.py").write_text(
        "import torch\n\n\ndef handle(data, context):\n    return data and [torch.arange(3)]\n"
    )
    worker = start(folder)
    assert load(worker) == Loaded()
    (folder / "answer.pt").write_bytes(worker.ask(b"").body)
    assert torch.equal(torch.load(folder / "answer.pt", weights_only=True), torch.arange(3))


def test_an_unexplained_model_says_what_to_override(start, folder):
    worker = start(folder)
    assert load(worker, modelFile="model.py") == Loaded()
    call = Call(headers=[Header("Explain", "True")], parts=[Part("body", body=b"[1, 2, 3.0]")])
    worker.send(Batch(1, [Item(1, 60_000, call)]))
    (failure,) = worker.answers()
    assert failure.message == (
        "NotImplementedError: LinearHandler explains nothing: it overrides neither get_insights nor explain_handle"
    )


def save_weights(model, folder):
    torch.save(model.state_dict(), folder / "weights.pt")
    return {"serializedFile": "weights.pt"}


def save_pickled_model(model, folder):
    torch.save(model, folder / "weights.pt")
    return {"serializedFile": "weights.pt", "modelFile": "model.py"}


def save_nothing(model, folder):
    return {"serializedFile": "weights.pt", "modelFile": "model.py"}


def save_other(model, folder):
    torch.save(model.state_dict(), folder / "weights.bin")
    return {"serializedFile": "weights.bin"}


def save_two_classes(model, folder):
    source = (folder / "model.py").read_text()
    (folder / "model.py").write_text(source + "\n\nclass Second(torch.nn.Module):\n    pass\n")
    return {"modelFile": "model.py"}


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (save_weights, "ValueError: weights.pt holds weights and no TorchScript program; pack it with --model-file"),
        (save_pickled_model, "ValueError: weights.pt is no plain state dict"),
        (save_nothing, "FileNotFoundError: the archive has no weights file weights.pt"),
        (save_other, "RuntimeError: No model weights could be loaded: weights.bin needs --model-file with the class"),
        (
            save_two_classes,
            "ValueError: model.py must define exactly one torch.nn.Module; it defines TinyLinear, Second",
        ),
    ],
)
def test_a_model_that_does_not_fit_says_why(start, folder, model, save, message):
    """L03."""
    assert load(start(folder), **save(model, folder)).message.startswith(message)
