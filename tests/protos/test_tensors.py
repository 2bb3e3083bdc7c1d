"""Tensors as bytes: every datatype there and back, and bytes that are no tensors refused."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchd_protos.tensors import (
    DATATYPES,
    DIMENSIONS_AT_MOST,
    HEAD_AT_MOST,
    TensorsInvalid,
    flat,
    pack,
    prefixed,
    raw_of,
    raw_of_each,
    unpack,
    values_of,
)

_NUMPY = {
    "BOOL": np.bool_,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}


def elements(datatype: str) -> st.SearchStrategy[Any]:
    if datatype == "BYTES":
        return st.binary(max_size=20)
    if datatype == "BOOL":
        return st.booleans()
    if datatype in ("FP16", "FP32", "FP64"):
        return st.floats(width=int(datatype[2:]))  # type: ignore[arg-type]
    if datatype == "BF16":  # the floats whose lower half is empty
        return st.integers(0, 0xFFFF).map(lambda bits: struct.unpack("<f", struct.pack("<I", bits << 16))[0])
    bits = int(datatype.lstrip("UINT"))
    return st.integers(0, 2**bits - 1) if datatype[0] == "U" else st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


ANY_TENSOR = st.sampled_from(DATATYPES).flatmap(
    lambda datatype: st.tuples(st.just(datatype), st.lists(elements(datatype), max_size=20))
)


def same(one: Any, other: Any) -> bool:
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


@given(ANY_TENSOR)
def test_elements_come_back_as_they_went(tensor: tuple[str, list[Any]]) -> None:
    datatype, values = tensor
    back = values_of(datatype, raw_of(datatype, values))
    assert len(back) == len(values)
    assert all(same(one, other) for one, other in zip(back, values, strict=True))


@pytest.mark.parametrize("datatype", _NUMPY)
def test_raw_data_is_what_numpy_has_in_memory(datatype: str) -> None:
    array = np.array([0, 1, 1, 0]).astype(_NUMPY[datatype])
    assert raw_of(datatype, array.tolist()) == array.tobytes()
    assert values_of(datatype, array.tobytes()) == array.tolist()


@pytest.mark.parametrize(
    ("value", "bits"), [(1.0, 0x3F80), (1.00390625, 0x3F80), (1.01171875, 0x3F82), (math.inf, 0x7F80), (-0.0, 0x8000)]
)
def test_a_bf16_is_rounded_to_the_nearest_even(value: float, bits: int) -> None:
    assert raw_of("BF16", [value]) == struct.pack("<H", bits)


def test_a_bf16_that_is_no_number_stays_none() -> None:
    [value] = values_of("BF16", raw_of("BF16", [math.nan]))
    assert math.isnan(value)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("INT8", 128),
        ("INT8", 1.5),
        ("UINT64", -1),
        ("FP32", "1"),
        ("FP16", 1e6),
        ("BOOL", "yes"),
        ("BYTES", 1),
        ("BYTES", "\ud800"),
        ("INT32", None),
    ],
)
def test_an_element_that_does_not_fit_is_refused(datatype: str, value: Any) -> None:
    with pytest.raises(TensorsInvalid, match=datatype):
        raw_of(datatype, [value])


def one(**tensor: Any) -> dict[str, Any]:
    return {"name": "a", "datatype": "INT8", "shape": [2], "parameters": {"binary_data_size": 2}, **tensor}


@pytest.mark.parametrize(
    ("tensors", "raw"),
    [
        (None, b""),
        ({}, b""),
        (["a"], b""),
        ([one(name=1)], b"12"),
        ([one(datatype="INT4")], b"12"),
        ([one(datatype=["INT8"])], b"12"),
        ([one(shape=None)], b"12"),
        ([one(shape=[-1])], b"12"),
        ([one(shape=[True, 2])], b"12"),
        ([one(shape=[3])], b"12"),
        ([one(shape=[2**63, 0])], b""),
        ([one(shape=[2, *[1] * DIMENSIONS_AT_MOST])], b"12"),
        ([one(parameters=[1])], b"12"),
        ([one(parameters={"binary_data_size": 3})], b"12"),
        ([one(parameters={"binary_data_size": -2})], b"12"),
        ([one(parameters={"binary_data_size": True})], b"12"),
        ([one()], b"123"),
        ([one()], b"1"),
        ([one(), one()], b"12"),
    ],
)
def test_a_head_that_does_not_fit_its_data_is_refused(tensors: Any, raw: bytes) -> None:
    with pytest.raises(TensorsInvalid):
        raw_of_each(tensors, memoryview(raw))


def test_a_shape_of_very_many_large_sizes_is_refused_before_it_is_multiplied() -> None:
    """P22: the product of these would take minutes, in the daemon's event loop."""
    with pytest.raises(TensorsInvalid, match="200000 dimensions; at most"):
        raw_of_each([one(shape=[2**63 - 1] * 200_000)], memoryview(b"12"))


def test_tensors_with_values_in_the_head_and_behind_it_go_together() -> None:
    tensors = [one(), {"name": "b", "datatype": "FP32", "shape": [1], "data": [1.0]}, one(name="c")]
    head, raw = unpack(pack({"inputs": tensors}, [b"12", b"34"]))
    shares = raw_of_each(head["inputs"], raw)
    assert [share and bytes(share) for share in shares] == [b"12", None, b"34"]


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for candidate in (body, prefixed(len(body), body), prefixed(4, body)):
        try:
            head, raw = unpack(candidate)
            raw_of_each(head.get("inputs"), raw)
        except TensorsInvalid:
            pass


@given(st.binary(max_size=40))
def test_any_bytes_are_bytes_elements_or_refused(raw: bytes) -> None:
    try:
        values = values_of("BYTES", raw)
    except TensorsInvalid:
        return
    assert raw_of("BYTES", values) == raw


def test_a_nested_list_is_flattened_in_order() -> None:
    assert flat([[1, 2], [3, [4]], 5]) == [1, 2, 3, 4, 5]
    assert flat(7) == [7]
    assert HEAD_AT_MOST >= 64 * 1024
