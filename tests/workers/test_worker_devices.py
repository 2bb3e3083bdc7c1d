"""Which device a worker's model goes to, what is decided about it, and how tensors get there; no device is needed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from torchd_protos.frames import Loaded, LoadFailed, Log

torch = pytest.importorskip("torch")
from torchd_workers.handlers.devices import Libraries, NoSuchDevice, device_for, moved  # noqa: E402
from torchd_workers.handlers.optimizing.precision import NoSuchPrecision, in_dtype  # noqa: E402
from torchd_workers.torchserve.mock_context import MockContext  # noqa: E402

LINEAR = Path(__file__).resolve().parents[1] / "models" / "linear"


def libraries(*names: str, cuda_devices: int = 8) -> Libraries:
    """A machine on which torch can use these and nothing else."""
    kinds = {kind: (lambda kind=kind: kind in names) for kind in ("cuda", "xpu", "mps", "xla")}
    return Libraries(cuda_devices=lambda: cuda_devices, **kinds)


IPEX = {"TS_IPEX_GPU_ENABLE": "true"}


@pytest.mark.parametrize(
    ("gpu", "has", "environment", "device"),
    [
        (0, ("cuda", "xpu", "mps"), IPEX, "cuda:0"),
        (3, ("cuda",), {}, "cuda:3"),
        ("3", ("cuda",), {}, "cuda:3"),
        (1, ("xpu", "mps"), IPEX, "xpu:1"),
        (1, ("xpu", "mps"), {}, "mps"),
        (1, ("xpu",), {}, "cpu"),
        (1, ("xpu",), {"TS_IPEX_GPU_ENABLE": "false"}, "cpu"),
        (0, ("mps",), {}, "mps"),
        (0, (), {}, "cpu"),
        (None, ("cuda", "xpu", "mps"), IPEX, "cpu"),
    ],
)
def test_devices_are_taken_in_torchserves_order(gpu, has, environment, device):
    """Section 6.3: CUDA, XPU only where it is asked for, MPS, CPU; a worker that was lent no GPU uses none."""
    assert device_for(gpu, libraries(*has), environment) == torch.device(device)


@pytest.mark.parametrize(("gpu", "has"), [(None, ("cuda", "xla")), (0, ("xla",))])
def test_xla_comes_before_the_cpu(monkeypatch, tmp_path, gpu, has):
    package = tmp_path / "torch_xla" / "core"
    package.mkdir(parents=True)
    (tmp_path / "torch_xla" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "xla_model.py").write_text("def xla_device():\n    return 'xla:0'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert Libraries().xla()
        assert device_for(gpu, libraries(*has)) == "xla:0"
    finally:
        for name in ("torch_xla", "torch_xla.core", "torch_xla.core.xla_model"):
            sys.modules.pop(name, None)  # or every later test would run on it


def test_a_gpu_that_the_worker_does_not_see_is_named():
    """Without this the first request would fail with `invalid device ordinal`."""
    with pytest.raises(NoSuchDevice, match=r"was lent GPU 1, and sees 1 \(CUDA_VISIBLE_DEVICES: GPU-ab12\)"):
        device_for(1, libraries("cuda", cuda_devices=1), {"CUDA_VISIBLE_DEVICES": "GPU-ab12"})


def test_a_worker_with_a_gpu_and_a_torch_without_cuda_says_so(start, tmp_path):
    """The commonest mistake of an installation: the CPU build of torch on a machine with GPUs."""
    shutil.copytree(LINEAR, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    if torch.cuda.is_available():
        pytest.skip("this torch has CUDA")
    worker = start(tmp_path)
    manifest = json.dumps({"model": {"modelName": "linear", "handler": "handler.py", "modelFile": "model.py"}})
    assert worker.load(manifest_json=manifest, gpu_id=0) == Loaded()
    assert any("GPU 0 was lent" in message.text for message in worker.seen if isinstance(message, Log))
    assert worker.ask(b"[1, 2, 3.0]").body


class Tensor(torch.Tensor):
    """Writes down how it is moved, since no CUDA device is here to move it to."""

    def pin_memory(self):
        self.__dict__.setdefault("steps", []).append("pin")
        return self

    def to(self, device, **options):
        self.__dict__.setdefault("steps", []).append((str(device), options))
        return self


def steps(device: str, **options: bool) -> list[object]:
    tensor = torch.zeros(2).as_subclass(Tensor)
    moved(tensor, torch.device(device), **options)
    return tensor.__dict__["steps"]


def test_only_copies_to_cuda_go_by_pinned_memory():
    assert steps("cuda:0") == ["pin", ("cuda:0", {"non_blocking": True})]
    assert steps("cuda:0", pin_memory=False) == [("cuda:0", {})]
    assert steps("cpu") == [("cpu", {})]
    assert steps("mps") == [("mps", {})]


class Tokens(dict):
    """Like a tokenizer's batch: no tensor, and it can move itself."""

    def to(self, device):
        return Tokens(device=device)


def test_what_moves_itself_is_left_to_it():
    assert moved(Tokens(), torch.device("cuda:0"))["device"] == torch.device("cuda:0")


def test_a_handler_that_skips_our_init_still_answers():
    """Handlers of the wild set `model` and `device` themselves."""
    from torchd_workers.handlers.base import BaseHandler

    class Bare(BaseHandler):
        def __init__(self):
            self.model = torch.nn.Identity()
            self.device = torch.device("cpu")
            self.context = None

    assert Bare().handle([{"data": [1.0]}], MockContext()) == [[1.0]]


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(LINEAR, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    torch.manual_seed(7)
    layer = torch.nn.Linear(3, 2)
    torch.save({f"layer.{name}": value for name, value in layer.state_dict().items()}, tmp_path / "weights.pt")
    return tmp_path


def load(worker, optimize, **more):
    files = {"modelFile": "model.py", "serializedFile": "weights.pt", **more.pop("files", {})}
    manifest = json.dumps({"model": {"modelName": "linear", "handler": "base_handler", **files}})
    config = json.dumps({"optimize": optimize, **more})
    return worker.load("base_handler", manifest_json=manifest, config_json=config)


def expected(folder, dtype, rows):
    weights = torch.load(folder / "weights.pt", weights_only=True)
    weight, bias = (weights[f"layer.{name}"].to(dtype) for name in ("weight", "bias"))
    return (torch.tensor(rows, dtype=dtype) @ weight.T + bias).tolist()


ROWS = [[0.1, 0.2, 0.3], [1.0, -1.0, 0.7]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("compiled", [None, {"compile": {"enable": True, "backend": "eager"}}], ids=["eager", "pt2"])
def test_a_model_computes_in_the_type_it_is_told(start, folder, dtype, compiled):
    worker = start(folder)
    assert isinstance(load(worker, {"dtype": dtype}, pt2=compiled), Loaded)
    answers = [json.loads(bytes(answer.body)) for answer in worker.run(*(json.dumps(row).encode() for row in ROWS))]
    close = {"float32": 1e-6, "bfloat16": 2e-2, "float16": 2e-3}[dtype]
    assert torch.allclose(torch.tensor(answers), torch.tensor(expected(folder, torch.float32, ROWS)), atol=close)
    is_narrow = torch.equal(torch.tensor(answers).to(getattr(torch, dtype)).float(), torch.tensor(answers))
    assert is_narrow, "the numbers are of the narrow type"


@pytest.mark.parametrize(
    ("optimize", "message"),
    [
        ("fp16", "ValueError: model-config.yaml has optimize: 'fp16'; it must be a mapping, like {dtype: bfloat16}"),
        ({"dtype": "int8"}, "ValueError: optimize.dtype is 'int8'; it may be float32, float16, bfloat16"),
        ({"dtype": 16}, "ValueError: optimize.dtype is 16; it may be float32, float16, bfloat16"),
        ({"quantise": True}, "ValueError: optimize has the unknown entry quantise; it may have dtype, cast, compile"),
        ({"pin_memory": "yes"}, "ValueError: optimize.pin_memory is 'yes'; it may be true or false"),
    ],
)
def test_a_wish_that_cannot_be_understood_is_named(start, folder, optimize, message):
    refusal = load(start(folder), optimize)
    assert isinstance(refusal, LoadFailed)
    assert refusal.message.startswith(message)


class InferenceSession:
    """What onnxruntime gives."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [InferenceSession, lambda: torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3))])
def test_a_program_with_types_of_its_own_refuses_another(make):
    """TorchScript takes no hooks, and its constants would keep their type."""
    model = make()
    kind = type(model).__name__
    with pytest.raises(NoSuchPrecision, match=rf"optimize\.dtype is float16, .* of its own \({kind}\): export it"):
        in_dtype(model, "float16", torch.device("cpu"))


def test_callers_of_a_narrow_model_give_and_get_float32():
    """Handlers that call the model themselves, transformers' outputs among them, need no change."""

    class Output(dict):
        pass

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)
            self.seen = []

        def forward(self, rows, ids, mask=None):
            self.seen += [rows.dtype, ids.dtype, mask.dtype]
            scores = self.layer(rows)
            return Output(logits=scores, ids=ids, cache=(scores,), none=None)

    model = in_dtype(Net(), "bfloat16", torch.device("cpu"))
    with torch.inference_mode():
        output = model(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), mask=torch.ones(1))
    assert model.seen == [torch.bfloat16, torch.int64, torch.bfloat16]
    assert (output["logits"].dtype, output["ids"].dtype) == (torch.float32, torch.int64)
    assert output["cache"][0].dtype == torch.bfloat16, "a cache that is fed back stays narrow"
    assert type(output) is Output


def test_outputs_in_rows_are_widened_too():
    class Pair(torch.nn.Module):
        def forward(self, rows):
            return rows, rows.double()

    model = in_dtype(Pair(), "float16", torch.device("cpu"))
    assert [value.dtype for value in model(torch.zeros(1))] == [torch.float32, torch.float64]
