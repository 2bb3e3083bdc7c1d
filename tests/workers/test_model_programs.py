"""BaseHandler with models that are programs: ONNX, AOTInductor; torch.compile, the profiler."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from harness.sample_images import DATA

from torchd_protos.frames import Loaded

torch = pytest.importorskip("torch")
from torchd_workers.handlers.profiling import profiler_for  # noqa: E402
from torchd_workers.handlers.programs import load_onnx, run_onnx  # noqa: E402
from torchd_workers.handlers.pt2 import compile_arguments  # noqa: E402

MODEL = """
import torch


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(self.layer.weight, 0.5)
        torch.nn.init.constant_(self.layer.bias, 1.0)

    def forward(self, rows):
        return self.layer(rows)
"""


def network():
    space: dict = {}
    exec(MODEL, space)
    return space["Linear"]().eval()


def load(worker, config="{}", **files):
    manifest = json.dumps({"model": {"modelName": "program", "handler": "base_handler", **files}})
    return worker.load("base_handler", manifest_json=manifest, config_json=config)


def answers(worker, *rows):
    return [json.loads(bytes(answer.body)) for answer in worker.run(*(json.dumps(row).encode() for row in rows))]


def test_an_onnx_model_answers(start, tmp_path):
    """tests/data/linear.onnx: [n, 3] times [[1, 2], [3, 4], [5, 6]] plus [0.5, -0.5]. TorchServe cannot run it."""
    pytest.importorskip("onnxruntime")
    shutil.copy(DATA / "linear.onnx", tmp_path)
    worker = start(tmp_path)
    assert load(worker, serializedFile="linear.onnx") == Loaded()
    assert answers(worker, [1.0, 2.0, 3.0], [0.0, 0.0, 1.0]) == [[22.5, 27.5], [5.5, 5.5]]


def test_an_onnx_model_says_what_its_inputs_are():
    pytest.importorskip("onnxruntime")
    session = load_onnx(str(DATA / "linear.onnx"), torch.device("cpu"))
    with pytest.raises(ValueError, match="the ONNX model has the inputs rows and was given 2"):
        run_onnx(session, [torch.ones(1, 3), torch.ones(1)])


def test_without_onnxruntime_the_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeError, match=r"linear.onnx needs onnxruntime.*pip install 'torchd\[onnx\]'"):
        load_onnx(str(DATA / "linear.onnx"), torch.device("cpu"))


@pytest.mark.needs("g++")
@pytest.mark.timeout(600)
def test_a_package_of_aotinductor_answers(start, tmp_path):
    model = network()
    batch = torch.export.Dim("batch", min=1, max=8)
    exported = torch.export.export(model, (torch.ones(2, 3),), dynamic_shapes=({0: batch},))
    torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "model.pt2"))
    worker = start(tmp_path)
    assert load(worker, '{"pt2": {"export": {"aot_compile": true}}}', serializedFile="model.pt2") == Loaded()
    expected = model(torch.tensor([[1.0, 2.0, 3.0]])).tolist()
    assert answers(worker, [1.0, 2.0, 3.0]) == [pytest.approx(expected[0])]


def test_torch_compile_is_asked_for_by_pt2(start, tmp_path):
    """Backend `eager` compiles nothing but shows the way: the options reach torch.compile."""
    (tmp_path / "model.py").write_text(MODEL)
    worker = start(tmp_path)
    config = '{"pt2": {"compile": {"enable": true, "backend": "eager"}}}'
    assert load(worker, config, modelFile="model.py") == Loaded()
    assert answers(worker, [1.0, 2.0, 3.0]) == [[4.0, 4.0]]
    assert any("model compiled with {'backend': 'eager'}" in str(message) for message in worker.seen)


@pytest.mark.parametrize(
    ("pt2", "arguments"),
    [
        (None, None),
        ("inductor", {"backend": "inductor"}),
        ("no-such-backend", None),
        ({"backend": "eager", "mode": "default"}, {"backend": "eager", "mode": "default"}),
        ({"compile": {"enable": True, "mode": "max-autotune"}}, {"mode": "max-autotune"}),
        ({"compile": {"enable": True, "backend": "no-such-backend"}}, None),
        ({"compile": {"enable": False, "backend": "inductor"}}, None),
        ({"export": {"aot_compile": True}}, None),
    ],
)
def test_the_entry_pt2_says_what_torch_compile_gets(pt2, arguments):
    """Section 4.2."""
    assert compile_arguments(pt2) == arguments


def test_a_profile_of_each_batch_goes_to_a_trace(tmp_path, monkeypatch):
    """ENABLE_TORCH_PROFILER: section 6.3."""
    from torchd_workers.handlers import profiling
    from torchd_workers.handlers.base import BaseHandler
    from torchd_workers.torchserve.mock_context import MockContext

    assert profiling.TRACES == "/tmp/pytorch_profiler"
    monkeypatch.setattr(profiling, "TRACES", str(tmp_path / "traces"))
    monkeypatch.setenv("ENABLE_TORCH_PROFILER", "TRUE")
    context = MockContext(None, str(tmp_path), None)
    context.manifest["model"]["modelName"] = "profiled"
    handler = BaseHandler()
    handler.model, handler.device = network(), torch.device("cpu")
    assert handler.handle([{"body": [1.0, 2.0, 3.0]}], context) == [[4.0, 4.0]]
    (trace,) = (tmp_path / "traces" / "profiled").iterdir()
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"preprocess", "inference", "postprocess"} <= names


def test_a_handlers_own_profiler_arguments_stay():
    arguments = {"on_trace_ready": print, "with_stack": True}
    profiler_for(arguments, "m")
    assert arguments == {"on_trace_ready": print, "with_stack": True}
