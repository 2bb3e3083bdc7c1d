"""The handlers of images: tensors that are TorchServe's to the last bit, and answers of its form."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest
from harness.record_image_tensors import fingerprint
from harness.sample_images import DATA, KITTEN, SIZES, png, sample

from torchd_protos.frames import Batch, Call, Failure, Header, Item, Loaded, Metric, Part, Reply

torch = pytest.importorskip("torch")
from torchd_workers.failures import PredictionException  # noqa: E402
from torchd_workers.handlers.image_classifier import ImageClassifier  # noqa: E402
from torchd_workers.handlers.image_segmenter import ImageSegmenter  # noqa: E402
from torchd_workers.handlers.image_transforms import IMAGENET, ToTensor  # noqa: E402
from torchd_workers.handlers.object_detector import ObjectDetector  # noqa: E402
from torchd_workers.torchserve.mock_context import MockContext  # noqa: E402

RECORDED = json.loads((DATA / "image_tensors.json").read_text())
MODEL = """
import torch


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = torch.nn.AdaptiveAvgPool2d(4)
        self.layer = torch.nn.Linear(48, 1000)

    def forward(self, images):
        return self.layer(self.pool(images).flatten(1))
"""
SEGMENTER = "import torch\n\n\nclass M(torch.nn.Module):\n    def forward(self, x):\n        return {'out': x}\n"
DETECTOR = """
import torch


class M(torch.nn.Module):
    def forward(self, images):
        one = {"boxes": torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7]]), "labels": torch.tensor([1, 2]),
               "scores": torch.tensor([0.75, 0.25])}
        return [one for _ in images]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small network of random weights with ImageNet's thousand names."""
    (tmp_path / "model.py").write_text(MODEL)
    shutil.copy(DATA / "imagenet_index_to_name.json", tmp_path / "index_to_name.json")
    torch.manual_seed(3)
    space: dict = {}
    exec(MODEL, space)
    torch.save(space["Tiny"]().state_dict(), tmp_path / "weights.pth")
    return tmp_path


def load(worker, handler="image_classifier", **load_fields):
    files = {"modelFile": "model.py"}
    if (worker.directory / "weights.pth").exists():
        files["serializedFile"] = "weights.pth"
    manifest = json.dumps({"model": {"modelName": "tiny", "handler": handler, **files}})
    assert worker.load(handler, manifest_json=manifest, **load_fields) == Loaded()
    return worker


def plain(body):
    return json.loads(bytes(body))


@pytest.mark.parametrize("size", SIZES)
def test_a_tensor_is_what_torchvision_makes_of_the_image(size):
    assert fingerprint(IMAGENET(sample(size))) == RECORDED[f"{size[0]}x{size[1]}"]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_an_image_of_any_mode_becomes_three_channels(mode):
    """TorchServe 0.12 answers 503 to all of them."""
    image = sample((40, 30)).convert("L").convert(mode)
    assert IMAGENET(image).shape == (3, 224, 224)


def test_pixels_become_floats_from_0_to_1_and_deep_ones_stay():
    assert ToTensor()(sample((8, 8)).convert("L")).max() <= 1
    assert ToTensor()(sample((8, 8)).convert("1")).unique().tolist() == [0, 1]
    assert ToTensor()(sample((8, 8)).convert("I")).dtype == torch.int32


def test_the_classifier_answers_five_names_with_probabilities(start, folder):
    """Section 6.3: {label: probability}, the likeliest first."""
    worker = load(start(folder))
    answer = plain(worker.ask(KITTEN.read_bytes()).body)
    names = {json.loads((folder / "index_to_name.json").read_text())[str(n)][1] for n in range(1000)}
    assert len(answer) == 5
    assert set(answer) <= names
    assert list(answer.values()) == sorted(answer.values(), reverse=True)
    assert 0 < sum(answer.values()) < 1


def test_a_file_its_base64_and_its_numbers_give_one_answer(start, folder):
    worker = load(start(folder), decode_input=True)
    image = png(sample((300, 200)))
    numbers = json.dumps(IMAGENET(sample((300, 200))).tolist()).encode()
    parts = [
        Part("data", body=image),
        Part("body", "text/plain", base64.b64encode(image)),
        Part("data", "application/json", numbers),
    ]
    worker.send(Batch(1, [Item(n + 1, 60_000, Call(parts=[part])) for n, part in enumerate(parts)]))
    first, *others = [plain(answer.body) for answer in worker.answers()]
    for other in others:
        assert other == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part("body", body=b"no image"), "the request's 8 bytes are no image that can be read"),
        (Part("body", body=KITTEN.read_bytes()[:500]), "the request's 500 bytes are no image that can be read"),
        (Part("picture", body=b""), "the request has neither a part 'data' nor a part 'body'; it has 'picture'"),
        (Part("body", "application/json", b'{"a": 1}'), "an image is bytes, base64 text or a list of numbers"),
        (Part("body", "text/plain", b"x"), "the image came as text that is no base64"),
    ],
)
def test_what_is_no_image_is_the_clients_mistake(start, folder, part, message):
    worker = load(start(folder), decode_input=True)
    worker.send(Batch(1, [Item(1, 60_000, Call(parts=[part]))]))
    (failure,) = worker.answers()
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.status) == ("PredictionFailed", 400)
    assert failure.message.startswith(message)
    assert isinstance(worker.ask(KITTEN.read_bytes()), Reply)


def test_one_clients_mistake_is_told_to_that_client_only(start, folder):
    """Section 13, 10: in TorchServe one bad item fails the whole batch."""
    worker = load(start(folder))
    good, bad, other = worker.run(KITTEN.read_bytes(), b"no image", png(sample((300, 200))))
    assert len(plain(good.body)) == len(plain(other.body)) == 5
    assert (bad.kind, bad.status) == ("PredictionFailed", 400)
    assert plain(worker.ask(KITTEN.read_bytes()).body) == pytest.approx(plain(good.body), rel=1e-5)


def test_images_of_different_sizes_are_detected_one_by_one(tmp_path, monkeypatch):
    """TorchServe cannot stack them."""
    handler = loaded(ObjectDetector, tmp_path, monkeypatch, DETECTOR)
    answers = handler.handle([{"body": png(sample(size))} for size in ((30, 20), (20, 30))], handler.context)
    assert [len(answer) for answer in answers] == [1, 1]


def test_an_explanation_has_the_shape_of_the_image_and_others_of_the_batch_are_predicted(start, folder):
    pytest.importorskip("captum")
    worker = load(start(folder))
    image = [Part("data", body=KITTEN.read_bytes())]
    explained = Call(headers=[Header("explain", "True")], parts=[*image, Part("target", body=b"3")])
    worker.send(Batch(1, [Item(1, 60_000, Call(parts=image)), Item(2, 60_000, explained)]))
    predicted, explanation = worker.answers()
    assert len(plain(predicted.body)) == 5
    assert torch.tensor(plain(explanation.body)).shape == (3, 224, 224)


def test_an_explanation_is_captums_integrated_gradients_in_fifteen_steps(folder, monkeypatch):
    captum = pytest.importorskip("captum.attr")
    handler = loaded(ImageClassifier, folder, monkeypatch)
    tensor = IMAGENET(sample((60, 60)))[None]
    expected = captum.IntegratedGradients(handler.model).attribute(tensor, target=7, n_steps=15)
    assert torch.allclose(torch.tensor(handler.get_insights(tensor, None, 7)), expected.float(), atol=1e-6)


def test_a_handler_may_bring_its_own_explainer():
    class Explainer:
        def attribute(self, tensor, target, n_steps):
            return tensor * target

    handler = ImageClassifier()
    handler.ig = Explainer()
    assert handler.get_insights(torch.ones(1), None, b"3") == [3.0]


def test_without_captum_the_sentence_names_the_extra(folder, monkeypatch):
    handler = loaded(ImageClassifier, folder, monkeypatch)
    monkeypatch.setitem(__import__("sys").modules, "captum", None)
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    with pytest.raises(RuntimeError, match=r"pip install 'torchd\[captum\]'"):
        handler.get_insights(torch.zeros(1, 3, 224, 224), None, 0)


def test_the_number_of_classes_can_be_chosen_and_is_never_more_than_there_are():
    handler = ImageClassifier()
    handler.set_max_result_classes(2)
    assert handler.get_max_result_classes() == 2
    handler.mapping = {"0": "cat", "1": "dog", "2": "cow"}
    assert list(handler.postprocess(torch.tensor([[1.0, 3.0, 2.0]]))[0]) == ["dog", "cow"]
    assert list(ImageClassifier().postprocess(torch.tensor([[1.0, 3.0]]))[0]) == ["1", "0"]


def test_a_segmenter_answers_the_likeliest_class_of_every_pixel(tmp_path, monkeypatch):
    handler = loaded(ImageSegmenter, tmp_path, monkeypatch, SEGMENTER)
    answers = handler.handle([{"body": png(sample((300, 200)))}] * 2, handler.context)
    scores = torch.softmax(IMAGENET(sample((300, 200))), dim=0).max(dim=0)
    pixels = torch.tensor(answers[0])
    assert pixels.shape == (224, 224, 2)
    assert torch.equal(pixels[..., 0], scores.indices.float())
    assert torch.allclose(pixels[..., 1], scores.values)
    assert len(answers) == 2


def test_a_detector_answers_what_it_is_sure_of(tmp_path, monkeypatch):
    (tmp_path / "index_to_name.json").write_text('{"object_type_names": ["no", "cat", "dog"]}')
    handler = loaded(ObjectDetector, tmp_path, monkeypatch, DETECTOR)
    answers = handler.handle([{"body": png(sample((30, 20)))}] * 2, handler.context)
    assert answers == [[{"cat": [0.0, 1.0, 2.0, 3.0], "score": 0.75}]] * 2


def test_a_picture_too_large_is_refused_unless_the_limit_is_off(start, folder):
    bomb = sample((1, 1)).convert("1").resize((14_000, 14_000))  # PIL refuses from 179 million pixels on
    refused = load(start(folder), limit_image_pixels=True).ask(png(bomb))
    assert isinstance(refused, Failure)
    assert "no image that can be read: Image size (196000000 pixels) exceeds limit" in refused.message
    handler = "from PIL import Image\nfrom ts.torch_handler.image_classifier import ImageClassifier as C\n\n\n"
    handler += "class H(C):\n    def handle(self, data, context):\n        return [str(Image.MAX_IMAGE_PIXELS)]\n"
    (folder / "limit.py").write_text(handler)
    assert load(start(folder), "limit.py", limit_image_pixels=False).ask(b"").body == b"None"


def test_profiled_steps_of_a_classifier_leave_their_times(start, folder):
    """Section 4.2: handler: {profile: true}."""
    worker = load(start(folder), config_json='{"handler": {"profile": true}}')
    worker.ask(KITTEN.read_bytes())
    names = {message.name for message in worker.seen if isinstance(message, Metric)}
    assert {f"ts_handler_{step}" for step in ("preprocess", "inference", "postprocess")} <= names


def loaded(cls, folder, monkeypatch, source=None):
    if source:
        (folder / "model.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(__import__("sys").modules, "model", raising=False)
    weights = "weights.pth" if (folder / "weights.pth").exists() else None
    context = MockContext(weights, str(folder))
    handler = cls()
    handler.initialize(context)
    handler.context = context
    monkeypatch.delitem(__import__("sys").modules, "model", raising=False)
    with pytest.raises(PredictionException):
        handler.preprocess([{}])
    return handler
