"""The `optimize` entry as people write it."""

from __future__ import annotations

from typing import Any

import pytest

from torchd_workers.handlers.optimizing.wish import Compile, Optimize, optimize_of


def wish(**entry: Any) -> Optimize:
    return optimize_of({"optimize": entry})


def test_without_an_entry_nothing_is_wished_for() -> None:
    assert optimize_of({}) == Optimize()


@pytest.mark.parametrize(("written", "meant"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")])
def test_types_may_be_called_what_people_call_them(written: str, meant: str) -> None:
    assert wish(dtype=written).dtype == meant


def test_compile_is_a_flag_or_arguments() -> None:
    assert wish(compile=True).compile == Compile()
    assert wish(compile=False).compile is None
    assert wish(compile={"mode": "max-autotune", "dynamic": False}).compile == Compile("max-autotune", False)


def test_warmup_is_a_number_or_says_of_what() -> None:
    assert wish(warmup=3, samples="a.json").warmup == 3
    assert wish(warmup={"requests": 4}, samples="a.json").warmup == 4
    assert wish(warmup=0).warmup == 0


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"cast": "autocast"}, "optimize.cast is autocast, but there is no optimize.dtype to cast to"),
        ({"dtype": "bf16", "cast": "half"}, "optimize.cast is 'half'; it may be layers, weights, autocast"),
        ({"quantize": "int8"}, "optimize.quantize is 'int8'; it may be int8_dynamic, int8_weight_only"),
        ({"quantize": True}, "optimize.quantize is True; it may be int8_dynamic, int8_weight_only"),
        ({"threads": 0}, "optimize.threads is 0; it may be a whole number from 1"),
        ({"interop_threads": True}, "optimize.interop_threads is True; it may be a whole number from 1"),
        ({"warmup": 3}, "optimize.warmup needs requests to send: name a file"),
        ({"samples": 3}, "optimize.samples is 3; it may be the name of a file or a folder in the archive"),
        ({"compile": "yes"}, "optimize.compile is 'yes'; it may be true, false or a mapping of mode, dynamic"),
        ({"compile": {"mode": "fast"}}, "optimize.compile.mode is 'fast'; it may be default, reduce-overhead"),
        ({"compile": {"level": 3}}, "optimize.compile has the unknown entry level; it may have mode, dynamic"),
    ],
)
def test_what_cannot_be_understood_is_named(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        wish(**entry)
    assert str(error.value).startswith(message)


def test_two_ways_to_compile_are_one_too_many() -> None:
    with pytest.raises(ValueError, match=r"optimize\.compile and pt2 both compile the model: keep one of them"):
        optimize_of({"optimize": {"compile": True}, "pt2": "inductor"})
