"""TracedHandler: batches of any size and length through programs of fixed shapes, each row as if it had come alone."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchd_protos.frames import Failure, Loaded, LoadFailed

torch = pytest.importorskip("torch")
from torchd_workers.context import Context  # noqa: E402
from torchd_workers.handlers.buckets import Bucket, DescriptionInvalid, TracedModel, traced_model  # noqa: E402
from torchd_workers.handlers.rows import BadInput  # noqa: E402
from torchd_workers.handlers.traced import TracedHandler  # noqa: E402

NUMBERS = {"name": "numbers", "dtype": "int64", "padding": 7}
MASK = {"name": "mask", "dtype": "int64", "padding": 0}
BUCKET = {"file": "b2.pt", "batch_size": 2, "max_length": 4}
SHAPES = [(2, 4), (2, 9), (5, 4), (5, 9)]


class Fixed(torch.nn.Module):
    """As strict about its shapes as a compiled program: a weighted sum of each row, and its running sums."""

    def __init__(self, batch_size: int, length: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.length = length

    def forward(self, numbers: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        if numbers.size(0) != self.batch_size or numbers.size(1) != self.length or numbers.size() != mask.size():
            raise RuntimeError("compiled for another shape")
        held = numbers * mask
        places = torch.arange(self.length) + 1
        return {
            "total": (held * places).sum(dim=1),
            "sums": held.cumsum(dim=1),
            "bucket": places[-1:].repeat(len(held)),
        }


class Pixels(torch.nn.Module):
    """A model of one input without a length, its answer a tuple of two."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if image.size(0) != 3:
            raise RuntimeError("compiled for another shape")
        return image.flatten(1).sum(dim=1), image.amax(dim=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traced")
    for batch_size, length in SHAPES:
        torch.jit.script(Fixed(batch_size, length)).save(str(folder / f"b{batch_size}_l{length}.pt"))
    torch.jit.script(Pixels()).save(str(folder / "pixels.pt"))
    buckets = [{"file": f"b{b}_l{n}.pt", "batch_size": b, "max_length": n} for b, n in SHAPES]
    config = {"buckets": buckets, "inputs": [NUMBERS, MASK], "sequence_outputs": ["sums"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def handler_of(folder, config=None, weights=None):
    manifest = {"model": {"serializedFile": weights} if weights else {}}
    handler = TracedHandler()
    handler.initialize(Context("m", str(folder), manifest, 1, None, model_yaml_config=config))
    return handler


def row_of(numbers):
    return {"body": json.dumps({"numbers": numbers, "mask": [1] * len(numbers)}).encode()}


def alone(numbers):
    """What the model says of a row that needs no padding."""
    sums = [sum(numbers[: place + 1]) for place in range(len(numbers))]
    return {"total": sum(n * (place + 1) for place, n in enumerate(numbers)), "sums": sums}


ROW = st.lists(st.integers(-50, 50), min_size=1, max_size=9)


@given(rows=st.lists(ROW, min_size=1, max_size=23))
def test_each_row_gets_its_unpadded_result_in_order(folder, rows):
    handler = _kept(folder)
    answers = handler.handle([row_of(row) for row in rows], handler.context)
    assert [{"total": answer["total"], "sums": answer["sums"]} for answer in answers] == list(map(alone, rows))
    longest = max(map(len, rows))
    assert {answer["bucket"] for answer in answers} == {4 if longest <= 4 else 9}


@given(rows=st.lists(ROW, min_size=1, max_size=23))
def test_a_batch_of_a_subclass_comes_back_without_padding(folder, rows):
    """preprocess may give tensors by name, padded to the longest, as tokenizers do."""
    handler = _kept(folder)
    longest = max(map(len, rows))
    numbers = torch.tensor([row + [99] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    output = handler.inference({"mask": mask, "numbers": numbers, "unused": mask})
    assert output["total"].tolist() == [alone(row)["total"] for row in rows]
    assert tuple(output["sums"].shape) == (len(rows), longest)
    by_place = handler.inference((numbers, mask))
    assert torch.equal(by_place["sums"], output["sums"])


_HANDLERS = {}


def _kept(folder):
    """Loading takes longer than the examples."""
    if folder not in _HANDLERS:
        _HANDLERS[folder] = handler_of(folder)
    return _HANDLERS[folder]


SIZES = st.tuples(st.integers(1, 8), st.integers(1, 8))


@given(shapes=st.lists(SIZES, min_size=1, max_size=6, unique=True), rows=st.integers(1, 20), length=st.integers(1, 8))
def test_the_smallest_bucket_that_fits_is_taken(shapes, rows, length):
    model = TracedModel(tuple(Bucket(f"{b}x{n}", b, n) for b, n in shapes))
    long_enough = [bucket for bucket in model.buckets if (bucket.max_length or 0) >= length]
    if not long_enough:
        with pytest.raises(BadInput, match=rf"the input is {length} long; the longest program of this model takes"):
            model.bucket_for(rows, length)
        return
    taken = model.bucket_for(rows, length)
    assert taken in long_enough
    fits = [bucket for bucket in long_enough if bucket.batch_size >= rows]
    if fits:
        assert taken in fits
        assert all(taken.batch_size * taken.max_length <= other.batch_size * other.max_length for other in fits)
    else:
        assert taken.batch_size == max(bucket.batch_size for bucket in long_enough)


def test_a_model_without_lengths_answers_with_all_its_outputs(folder):
    """One program, described in model-config.yaml, its file the archive's --serialized-file."""
    handler = handler_of(folder, {"traced": {"batch_size": 3}}, "pixels.pt")
    images = [[[float(n), 1.0], [2.0, 3.0]] for n in range(4)]
    answers = handler.handle([{"data": image} for image in images], handler.context)
    assert answers == [[float(n) + 6.0, [max(float(n), 1.0), 3.0]] for n in range(4)]


def test_images_of_two_shapes_are_answered_apart(folder):
    handler = handler_of(folder, {"traced": {"batch_size": 3}}, "pixels.pt")
    answers = handler.handle([{"data": [[1.0]]}, {"data": [[1.0, 2.0]]}], handler.context)
    assert answers == [[1.0, [1.0]], [3.0, [2.0]]]


def test_an_output_that_does_not_answer_every_row_is_named(tmp_path):
    class Mean(torch.nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows.mean()

    torch.jit.trace(Mean(), torch.ones(2, 3)).save(str(tmp_path / "mean.pt"))
    handler = handler_of(tmp_path, {"traced": {"batch_size": 2}}, "mean.pt")
    with pytest.raises(ValueError, match=r"output 0 of mean.pt has the shape \(\); .* each of its 2 rows"):
        handler.inference(torch.ones(1, 3))


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ({"max_length": 8}, "batch_size: None will not do"),
        ({"batch_size": True}, "batch_size: True will not do"),
        ({"batch_size": 2, "max_length": "long"}, "max_length: 'long' will not do"),
        ({"buckets": []}, "expected a list of at least one bucket"),
        ({"buckets": [3]}, "buckets: 3 will not do"),
        ({"buckets": [{"batch_size": 1}, {"batch_size": 1, "max_length": 2}]}, "some have a max_length and some have"),
        ({"batch_size": 1, "backend": "tpu"}, "backend: 'tpu' will not do; expected 'neuron' or 'cpu'"),
        ({"batch_size": 1, "inputs": [{"name": "a", "dtype": "int65"}]}, "torch has no dtype 'int65'"),
        ({"batch_size": 1, "inputs": [4]}, "inputs: 4 will not do"),
    ],
)
def test_a_description_that_will_not_do_is_told(description, sentence):
    with pytest.raises(DescriptionInvalid, match=sentence):
        traced_model(description, "model.pt")


def test_a_bucket_without_a_file_needs_a_serialized_file():
    with pytest.raises(DescriptionInvalid, match="names no file, and the archive has no --serialized-file"):
        traced_model({"batch_size": 1}, None)


def load(worker, **config):
    manifest = {"model": {"modelName": "m", "handler": "traced_handler"}}
    return worker.load("traced_handler", manifest_json=json.dumps(manifest), config_json=json.dumps(config))


def test_a_client_that_is_wrong_is_refused_alone_and_the_others_are_answered(start, folder):
    """The brought handler in a worker: one input too long, one that is no JSON, one that lacks an input."""
    worker = start(folder)
    assert load(worker) == Loaded()
    good = [row_of([1, 2])["body"], row_of([3])["body"]]
    answers = worker.run(good[0], row_of([1] * 10)["body"], b"no json", b'{"numbers": [1]}', good[1])
    failures = [answer.message for answer in answers if isinstance(answer, Failure)]
    assert [type(answer) is Failure for answer in answers] == [False, True, True, True, False]
    assert "the input is 10 long; the longest program of this model takes 9" in failures[0]
    assert "is no JSON" in failures[1]
    assert "the request lacks 'mask'" in failures[2]
    assert [answer.status for answer in answers if isinstance(answer, Failure)] == [400] * 3
    assert json.loads(bytes(answers[0].body))["sums"] == [1, 3]
    assert json.loads(bytes(answers[4].body))["total"] == 3


def test_the_others_of_a_wrong_client_still_share_one_run(folder):
    handler = handler_of(folder)
    runs = []
    handler.programs = {bucket: _counting(program, runs) for bucket, program in handler.programs.items()}
    context = handler.context
    context.request_processor = [SimpleNamespace(get_request_property=lambda key: None) for _ in range(5)]
    context.running = [SimpleNamespace(failure=None) for _ in range(5)]
    answers = handler.handle([*map(row_of, ([1], [2], [3], [4])), {"body": b"{}"}], context)
    assert [answer and answer["total"] for answer in answers] == [1, 2, 3, 4, None]
    assert isinstance(context.running[4].failure, BadInput)
    assert runs == [(5, 4)]


def _counting(program, runs):
    def run(*inputs):
        runs.append(tuple(inputs[0].shape))
        return program(*inputs)

    return run


def test_a_program_that_cannot_run_fails_when_the_model_loads(start, tmp_path, folder):
    """Not at the first request. The shapes that config.json says are not those of the program."""
    shutil.copy(folder / "b2_l4.pt", tmp_path / "b2.pt")
    failed = load(start(tmp_path), traced={"buckets": [{**BUCKET, "batch_size": 3}], "inputs": [NUMBERS, MASK]})
    assert isinstance(failed, LoadFailed)
    assert "compiled for another shape" in failed.message
    assert load(start(tmp_path), traced={"buckets": [BUCKET], "inputs": [NUMBERS, MASK]}) == Loaded()


def test_a_program_for_neuron_cores_says_what_it_needs(start, folder):
    failed = load(
        start(folder), traced={"batch_size": 2, "buckets": [{"file": "x.pt", "batch_size": 1}], "backend": "neuron"}
    )
    assert isinstance(failed, LoadFailed)
    assert "a program traced for NeuronCores needs torch_neuronx, which is not installed here" in failed.message


def test_torch_neuronx_is_imported_before_a_program_is_loaded(tmp_path, folder, monkeypatch):
    """Its import makes the operators known to torch.jit.load, which is then told no device."""
    (tmp_path / "torch_neuronx.py").write_text("import torch\nload = torch.jit.load\n")
    seen = []

    def jit_load(path, **arguments):
        seen.append(("torch_neuronx" in sys.modules, arguments))
        return SimpleNamespace(eval=lambda: None)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.jit, "load", jit_load)
    monkeypatch.delitem(sys.modules, "torch_neuronx", raising=False)
    handler_of(folder, {"traced": {"batch_size": 3, "backend": "neuron"}}, "pixels.pt")
    handler_of(folder, {"traced": {"batch_size": 3}}, "pixels.pt")
    handler_of(folder, {"traced": {"batch_size": 3, "backend": "cpu"}}, "pixels.pt")
    monkeypatch.delitem(sys.modules, "torch_neuronx")
    assert seen == [(True, {}), (True, {}), (True, {"map_location": torch.device("cpu")})]


def test_an_archive_that_says_no_shapes_is_told_where_to_say_them(start, tmp_path):
    failed = load(start(tmp_path))
    assert isinstance(failed, LoadFailed)
    assert "nothing says at which shapes the model was traced" in failed.message


def test_ts_has_the_class_to_derive_from(monkeypatch):
    from torchd_workers.loader import SHIM

    monkeypatch.syspath_prepend(SHIM)
    from ts.torch_handler import traced_handler

    assert traced_handler.TracedHandler is TracedHandler
    assert traced_handler.BadInput is BadInput
