"""How far two models' outputs are apart, whatever form they have."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torchd_workers.handlers.optimizing.outputs import NotComparable, Outputs, difference, tensors_of  # noqa: E402
from torchd_workers.handlers.optimizing.report import Difference  # noqa: E402


def apart(before: Any, after: Any, inputs: int = 64) -> Difference:
    """Of one batch."""
    return difference(Outputs(inputs, [tensors_of(before)]), Outputs(inputs, [tensors_of(after)]))


def test_the_difference_is_told_on_the_scale_of_the_original() -> None:
    found = apart(torch.tensor([0.0, 10.0]), torch.tensor([0.0, 10.5]), inputs=2)
    assert found.max_difference == 0.5
    assert found.standard_deviation == pytest.approx(10 / math.sqrt(2))
    assert found.ratio == pytest.approx(0.5 / (10 / math.sqrt(2)))
    assert not found.is_tolerable
    assert found.equal_top1 is None


def test_every_floating_tensor_counts_and_the_worst_is_told() -> None:
    class Output(dict):  # type: ignore[type-arg]
        """As transformers'."""

    before = Output(states=torch.tensor([0.0, 1.0]), more=(torch.tensor([0.0, 1.0]),), ids=torch.tensor([1]), no=None)
    after = Output(states=torch.tensor([0.0, 1.0]), more=(torch.tensor([0.0, 2.0]),), ids=torch.tensor([2]), no=None)
    assert apart(before, after).max_difference == 1.0
    assert list(tensors_of(before)) == ["states", "more.0"]
    assert apart(before, before).is_tolerable


def test_one_answer_in_sixty_four_that_tips_over_is_too_many() -> None:
    """Under 99 %: refused although the numbers are close."""
    before = torch.zeros(64, 2)
    before[:, 0] = torch.linspace(-100, 100, 64)
    before[0] = torch.tensor([1.0, 1.001])
    after = before.clone()
    after[0] = torch.tensor([1.001, 1.0])
    found = apart(before, after)
    assert found.ratio < 0.001
    assert (found.equal_top1, found.top1_judged, found.is_tolerable) == (63 / 64, True, False)
    assert "98.4% of the top-1 are equal (at least 99%)" in str(found)
    few = apart(before[:63], after[:63], inputs=63)
    assert (few.top1_judged, few.is_tolerable) == (False, True)
    assert "judged from 64 inputs on" in str(few)


def test_states_of_a_model_are_no_classes() -> None:
    """The largest of 768 numbers that mean nothing by themselves changes place with the first rounding."""
    states = {"last_hidden_state": torch.randn(64, 3, 8), "pooler_output": torch.randn(64, 8)}
    assert apart(states, states).equal_top1 is None
    assert apart(
        {**states, "logits": states["pooler_output"]}, {**states, "logits": -states["pooler_output"]}
    ).top1_judged


def test_what_is_no_number_any_more_is_infinitely_far() -> None:
    before = torch.tensor([0.0, 1.0])
    for broken in (math.nan, math.inf):
        assert apart(before, torch.tensor([0.0, broken])).ratio == math.inf
    assert apart(before, torch.tensor([0.0, 1.0, 2.0])).ratio == math.inf, "another shape"


def test_masks_of_infinities_are_equal() -> None:
    masked = torch.tensor([-math.inf, 1.0, 2.0, math.nan])
    assert apart(masked, masked).ratio == 0


def test_without_a_scale_nothing_is_judged() -> None:
    with pytest.raises(NotComparable, match="the outputs of 1 inputs do not vary, so there is no scale: add samples"):
        apart(torch.tensor([1.0]), torch.tensor([1.1]), inputs=1)
    with pytest.raises(NotComparable, match="no floating-point tensor"):
        apart(["a"], ["a"])
