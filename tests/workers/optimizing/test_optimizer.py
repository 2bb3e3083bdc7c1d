"""`optimize:` on a trained model: what is applied, what is found out about the answers, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torchd_workers.handlers.base import BaseHandler  # noqa: E402
from torchd_workers.handlers.optimizing import steps  # noqa: E402
from torchd_workers.handlers.optimizing.optimizer import AnswersChange  # noqa: E402
from torchd_workers.handlers.optimizing.report import Report  # noqa: E402
from torchd_workers.handlers.optimizing.samples import SamplesUnusable  # noqa: E402
from torchd_workers.handlers.optimizing.steps import CannotOptimize  # noqa: E402

Optimizing = Callable[..., Report]
EVERY_CAST = ["layers", "weights", "autocast"]


def serving(model: Any, handler: type[BaseHandler] = BaseHandler) -> BaseHandler:
    service = handler()
    service.model, service.device = model, torch.device("cpu")
    return service


@pytest.mark.parametrize("cast", EVERY_CAST)
def test_a_trained_model_in_half_the_bytes_is_tolerable(
    trained: Any, bodies: Any, optimize: Optimizing, cast: str
) -> None:
    report = optimize(serving(trained), {"dtype": "bf16", "cast": cast}, bodies)
    (option,) = report.options
    assert (option.name, option.asked, option.applied) == ("dtype", "bf16", True)
    found = option.difference
    assert found is not None
    assert found.inputs == 100
    assert 0 < found.ratio <= 0.05
    assert found.max_difference == pytest.approx(found.ratio * found.standard_deviation)
    assert (found.equal_top1, found.top1_judged) == (1.0, True)
    assert report.unchecked == ""
    assert json.loads(report.to_json())["options"][0]["difference"]["inputs"] == 100


def test_the_default_on_a_cpu_is_the_closest_that_is_fast(trained: Any, bodies: Any, optimize: Optimizing) -> None:
    report = optimize(serving(trained), {"dtype": "bfloat16"}, bodies)
    assert report.options[0].detail.startswith("layers: ")
    assert report.options[0].detail.endswith("% of the weights are bfloat16")


class FarFromZero(torch.nn.Module):
    """Its sums lose in bfloat16 what makes its answers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.far = torch.nn.Parameter(torch.tensor(1000.0))

    def forward(self, rows: Any) -> Any:
        return self.model(rows) + self.far - self.far


def test_answers_that_change_are_refused_with_their_figures_and_the_way_out(
    trained: Any, bodies: Any, optimize: Optimizing
) -> None:
    with pytest.raises(AnswersChange) as error:
        optimize(serving(FarFromZero(deepcopy(trained))), {"dtype": "bf16", "cast": "weights"}, bodies)
    said = str(error.value)
    assert said.startswith("optimize.dtype bf16 changes the answers too much: on 100 inputs outputs differ by up to ")
    assert "times the standard deviation" in said
    assert "(at most 0.05)" in said
    assert "% of the top-1 are equal (at least 99%)" in said
    assert said.endswith("; cast: layers and cast: autocast keep float32 where it matters")
    assert optimize(serving(FarFromZero(trained)), {"dtype": "bf16"}, bodies).options[0].applied, "the way out works"


def test_without_samples_it_is_applied_and_said_to_be_unchecked(trained: Any, optimize: Optimizing) -> None:
    report = optimize(serving(trained), {"dtype": "bf16"})
    assert report.options[0].applied
    assert report.options[0].difference is None
    assert report.unchecked == "no samples"


def test_with_few_inputs_top1_is_told_and_not_judged(trained: Any, bodies: Any, optimize: Optimizing) -> None:
    found = optimize(serving(trained), {"dtype": "bf16"}, bodies[:63]).options[0].difference
    assert found is not None
    assert (found.inputs, found.equal_top1, found.top1_judged) == (63, 1.0, False)


class NoModel:
    """A handler whose model has another name."""

    def handle(self, data: Any, context: Any) -> Any:
        return [1] * len(data)


def test_where_there_is_no_model_the_options_are_refused_by_name(optimize: Optimizing) -> None:
    message = "optimize asks for dtype and compile, but the handler has no self.model once it is initialized"
    for service in (NoModel(), None):
        with pytest.raises(CannotOptimize) as error:
            optimize(service, {"dtype": "bf16", "compile": True})
        assert str(error.value) == message


def test_what_needs_no_model_goes_without(optimize: Optimizing) -> None:
    before = torch.get_num_threads()
    try:
        report = optimize(NoModel(), {"threads": 1, "warmup": 3}, [[1.0]])
    finally:
        torch.set_num_threads(before)
    assert [(option.name, option.detail) for option in report.options] == [
        ("threads", "1 compute threads"),
        ("warmup", "3 requests in batches of up to 8"),
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_is_refused(optimize: Optimizing) -> None:
    program = torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3))  # type: ignore[no-untyped-call]
    with pytest.raises(CannotOptimize, match=r"for quantize, but self.model is a program .* export it as you want it"):
        optimize(serving(program), {"quantize": "int8_dynamic"})


class OfTheWild:
    """Knows nothing of BaseHandler: it calls its model and makes its answers in one method."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def handle(self, data: Any, context: Any) -> Any:
        rows = torch.tensor([json.loads(row["body"]) for row in data])
        context.metrics.add_counter("Asked", len(data))
        return self.model(rows).argmax(1).tolist()


def test_a_handler_that_derives_from_nothing_is_optimized_too(trained: Any, bodies: Any, optimize: Optimizing) -> None:
    sent: list[Any] = []
    report = optimize(OfTheWild(trained), {"dtype": "bf16", "pin_memory": True}, bodies, sent=sent)
    (pinned, option) = report.options
    assert option.difference is not None
    assert (option.difference.inputs, option.difference.equal_top1) == (100, 1.0)
    assert not pinned.applied
    assert "does not derive from BaseHandler" in pinned.detail
    assert sent == [], "nobody has asked, so nothing is counted"


def test_nobody_listens_once_the_check_is_over(trained: Any, bodies: Any, optimize: Optimizing) -> None:
    service = OfTheWild(trained)
    optimize(service, {"dtype": "bf16"}, bodies)
    assert service.model is trained


class Async(BaseHandler):
    """Answers when it likes."""

    async def handle(self, data: Any, context: Any) -> Any:  # type: ignore[override]
        return [1] * len(data)


def test_an_asynchronous_handler_is_said_to_be_unchecked(trained: Any, bodies: Any, optimize: Optimizing) -> None:
    report = optimize(serving(trained, Async), {"dtype": "bf16", "warmup": 2}, bodies)
    assert report.unchecked == "the handler is asynchronous"
    assert [option.applied for option in report.options] == [True, False]


def test_a_handler_may_know_only_bodies_that_the_server_has_read(
    trained: Any, bodies: Any, optimize: Optimizing
) -> None:
    class ReadsNoBytes(OfTheWild):
        def handle(self, data: Any, context: Any) -> Any:
            return self.model(torch.tensor([row["body"]["row"] for row in data])).tolist()

    report = optimize(ReadsNoBytes(trained), {"dtype": "bf16"}, [{"row": body} for body in bodies])
    assert report.options[0].difference is not None
    assert report.options[0].difference.inputs == 100


def test_a_sample_that_the_handler_refuses_is_named(trained: Any, optimize: Optimizing) -> None:
    with pytest.raises(SamplesUnusable, match=r"the handler fails on sample 1 of samples\.json: RuntimeError: mat1"):
        optimize(serving(trained), {"dtype": "bf16"}, [[1.0, 2.0]])


def test_an_option_that_the_handler_cannot_bear_is_named(trained: Any, bodies: Any, optimize: Optimizing) -> None:
    class ReadsWeights(BaseHandler):
        """Goes past the model's door, where rows are made narrow."""

        def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
            return data @ self.model.layers[0].weight.T

    with pytest.raises(CannotOptimize, match=r"optimize\.dtype bf16: the handler fails on sample 1 to 8 of .*dtype"):
        optimize(serving(trained, ReadsWeights), {"dtype": "bf16"}, bodies)


def test_inference_runs_without_gradients_and_explanations_may_have_them(trained: Any, optimize: Optimizing) -> None:
    class Sees(BaseHandler):
        def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
            self.mode = torch.is_inference_mode_enabled()
            return self.model(data)

    service = serving(trained, Sees)
    optimize(service, {"dtype": "float32"})
    assert not service.inference(torch.zeros(1, 16)).requires_grad
    assert service.mode is True  # type: ignore[attr-defined]
    rows = torch.zeros(1, 16, requires_grad=True)
    service.model(rows).sum().backward()
    assert rows.grad is not None


def test_channels_last_is_for_images(trained: Any, optimize: Optimizing) -> None:
    report = optimize(serving(trained), {"channels_last": True})
    assert not report.options[0].applied
    assert "no weight of four dimensions" in report.options[0].detail
    seen = []
    convolution = torch.nn.Conv2d(3, 4, 3)
    forward = convolution.forward
    convolution.forward = lambda rows: seen.append(rows) or forward(rows)  # type: ignore[func-returns-value, method-assign]
    assert optimize(serving(convolution), {"channels_last": True}).options[0].detail == "1 weights and the inputs"
    convolution(torch.zeros(1, 3, 8, 8))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_a_compiled_model_is_warmed_up_for_every_shape(trained: Any, bodies: Any, optimize: Optimizing) -> None:
    """So that no client waits for the compiler: afterwards none of the sizes makes it work."""
    service = serving(trained)
    report = optimize(service, {"compile": {"backend": "aot_eager", "dynamic": False}}, bodies[:8], batch_size=3)
    (option,) = report.options
    assert option.detail == "dynamic False, backend aot_eager, fullgraph False; warmed up with batches of 1, 2, 3"
    assert option.difference is not None
    assert option.difference.ratio < 1e-5
    with torch.compiler.set_stance("fail_on_recompile"):
        for size in (1, 2, 3):
            service.inference(torch.zeros(size, 16))
        with pytest.raises(RuntimeError, match="fail_on_recompile"):
            service.inference(torch.zeros(4, 16))


def test_a_narrow_model_can_be_compiled(trained: Any, bodies: Any, optimize: Optimizing) -> None:
    for cast in EVERY_CAST:
        service = serving(trained)
        entry = {"dtype": "bf16", "cast": cast, "compile": {"backend": "aot_eager", "fullgraph": True}}
        names = [option.name for option in optimize(service, entry, bodies).options]
        assert names == ["dtype", "compile"]


def test_int8_is_compared_as_the_others_are(trained: Any, bodies: Any, optimize: Optimizing) -> None:
    pytest.importorskip("torchao")
    report = optimize(serving(trained), {"quantize": "int8_weight_only"}, bodies)
    assert report.options[0].detail == "2 linear layers"
    assert report.options[0].difference is not None
    assert 0 < report.options[0].difference.ratio <= 0.05


def test_int8_without_its_library_names_the_extra(
    trained: Any, optimize: Optimizing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.delitem(sys.modules, "torchao.quantization", raising=False)
    with pytest.raises(RuntimeError, match=r"optimize.quantize needs torchao, .* pip install 'torchd\[quantize\]'"):
        optimize(serving(trained), {"quantize": "int8_dynamic"})


@pytest.mark.parametrize(
    ("dtype", "flags", "warning"),
    [
        ("bfloat16", {"avx2"}, "has no amx_bf16 or avx512_bf16 or bf16: bfloat16 is slow here, float32 is faster"),
        ("float16", {"avx512_bf16"}, "has no amx_fp16 or asimdhp: float16 is slow here, bfloat16 is faster"),
        ("bfloat16", {"avx512_bf16"}, ""),
        ("float16", {"amx_fp16"}, ""),
    ],
)
def test_a_type_that_the_cpu_cannot_multiply_is_warned_of(
    trained: Any, optimize: Optimizing, monkeypatch: pytest.MonkeyPatch, dtype: str, flags: set[str], warning: str
) -> None:
    monkeypatch.setattr(steps, "cpu_flags", lambda: frozenset(flags))
    warnings = optimize(serving(trained), {"dtype": dtype}).warnings
    assert bool(warnings) == bool(warning)
    assert not warning or warnings[0].endswith(warning)
