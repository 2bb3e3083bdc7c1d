"""Layers that compute in another type while everything between them does not."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torchd_workers.handlers.optimizing.precision import NoSuchPrecision, in_dtype, narrow_share  # noqa: E402

CPU = torch.device("cpu")


def dtypes(model: Any) -> dict[str, Any]:
    return {name: weight.dtype for name, weight in model.named_parameters()}


def narrowed(model: Any, cast: str = "layers") -> Any:
    return in_dtype(model.eval(), "bfloat16", CPU, cast)


def test_layers_go_narrow_and_what_lies_between_them_does_not() -> None:
    model = narrowed(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2)))
    assert {name for name, dtype in dtypes(model).items() if dtype is torch.bfloat16} == {
        "0.weight", "0.bias", "2.weight", "2.bias",
    }  # fmt: skip
    assert model(torch.ones(1, 4)).dtype is torch.float32
    assert narrow_share(model, "bfloat16") == pytest.approx(30 / 38)


def test_an_embedding_keeps_the_weight_that_a_layer_shared_with_it() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(7, 4)
            self.norm = torch.nn.LayerNorm(4)
            self.scores = torch.nn.Linear(4, 7, bias=False)
            self.scores.weight = self.embedding.weight

        def forward(self, ids: Any) -> Any:
            return self.scores(self.norm(self.embedding(ids)))

    model = Tied()
    ids = torch.arange(7)
    before = model(ids)
    after = narrowed(model)(ids)
    assert model.embedding.weight.dtype is torch.float32
    assert model.scores.weight.dtype is torch.bfloat16
    assert torch.allclose(before, after, atol=0.05)


@pytest.mark.parametrize("cast", ["layers", "weights", "autocast"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: torch.nn.Conv2d(3, 4, 3), (1, 3, 8, 8)),
        (lambda: torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8)),
        (lambda: torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)), (2, 8)),
    ],
    ids=["convolution", "encoder", "norm"],
)
def test_what_goes_in_and_out_is_float32_however_it_is_cast(cast: str, make: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, rows = make().eval(), torch.randn(*shape)
    with torch.inference_mode():
        before = model(rows)
        after = narrowed(model, cast)(rows)
    assert after.dtype is torch.float32
    assert torch.allclose(before, after, atol=0.05)
    assert not torch.equal(before, after)


def test_the_state_of_an_lstm_goes_narrow_and_comes_wide() -> None:
    lstm = narrowed(torch.nn.LSTM(4, 4))
    with torch.inference_mode():
        output, state = lstm(torch.zeros(2, 1, 4))
        output, state = lstm(output, state)
    assert {output.dtype, *(part.dtype for part in state)} == {torch.float32}


def test_a_second_time_changes_nothing() -> None:
    model = narrowed(torch.nn.Linear(2, 2))
    forward = model.forward
    assert narrowed(model) is model
    assert model.forward is forward


def test_callers_still_read_the_signature() -> None:
    """transformers looks for `attention_mask` in it."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, rows: Any, attention_mask: Any = None) -> Any:
            return self.layer(rows)

    assert "attention_mask" in inspect.signature(narrowed(Net(), "weights").forward).parameters


def test_a_model_without_such_layers_is_told_what_would_do() -> None:
    with pytest.raises(NoSuchPrecision, match=r"Embedding has no linear layer, .* cast weights makes all of it narrow"):
        narrowed(torch.nn.Embedding(3, 3))
