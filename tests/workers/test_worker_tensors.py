"""What a handler sees of packed tensors, and what its answers become (reference section 1.3, ModelInfer)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from torchd_protos.frames import Call, Header, Part
from torchd_protos.tensors import CONTENT_TYPE, pack, raw_of, raw_of_each, unpack, values_of
from torchd_workers.context import RequestProcessor
from torchd_workers.failures import BadOutput
from torchd_workers.inputs import headers_of, row_of
from torchd_workers.outputs import reply_of


def request(*tensors: tuple[str, str, list[Any]], **more: Any) -> Call:
    raw = [raw_of(datatype, values) for _, datatype, values in tensors]
    inputs = [
        {"name": name, "shape": [len(values)], "datatype": datatype, "parameters": {"binary_data_size": len(share)}}
        for (name, datatype, values), share in zip(tensors, raw, strict=True)
    ]
    return Call(parts=[Part("body", CONTENT_TYPE, pack({"id": "7", "model_name": "m", "inputs": inputs, **more}, raw))])


def answer(value: Any) -> tuple[dict[str, Any], list[Any]]:
    processor = RequestProcessor(headers_of(Call(headers=[Header("accept", CONTENT_TYPE)])))
    head, raw = unpack(reply_of(1, value, processor, 0).body)
    shares = raw_of_each(head["outputs"], raw)
    return head, [
        values_of(tensor["datatype"], share or b"") for tensor, share in zip(head["outputs"], shares, strict=True)
    ]


def test_a_handler_sees_the_dictionary_that_torchserve_makes() -> None:
    row = row_of(request(("a", "INT32", [1, 2]), ("b", "BYTES", [b"\xff", b"x"])), decode=True)
    assert row["body"] == {
        "id": "7",
        "model_name": "m",
        "inputs": [
            {"name": "a", "shape": [2], "datatype": "INT32", "data": [1, 2]},
            {"name": "b", "shape": [2], "datatype": "BYTES", "data": ["/w==", "eA=="]},
        ],
    }


def test_without_decoding_a_handler_sees_the_same_as_json() -> None:
    row = row_of(request(("a", "FP32", [0.5])), decode=False)
    assert json.loads(row["body"])["inputs"][0]["data"] == [0.5]


def test_the_body_says_it_is_json() -> None:
    assert headers_of(request()).get("body") == {"content-type": "application/json"}


def test_bytes_that_are_no_tensors_reach_the_handler_as_they_are() -> None:
    assert row_of(Call(parts=[Part("body", CONTENT_TYPE, b"\0\0")]), decode=True)["body"] == bytearray(b"\0\0")


@pytest.mark.parametrize("form", [lambda value: value, json.dumps, lambda value: json.dumps(value).encode()])
def test_an_answer_of_the_protocol_is_packed(form: Any) -> None:
    outputs = [
        {"name": "a", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3, 4]]},
        {"name": "b", "datatype": "BYTES", "shape": [1], "data": ["x"], "parameters": {"k": 1}},
    ]
    head, values = answer(form({"id": "7", "outputs": outputs}))
    assert values == [[1.0, 2.0, 3.0, 4.0], [b"x"]]
    assert head["id"] == "7"
    assert head["outputs"][1]["parameters"]["k"] == 1


def test_bytes_can_be_sent_as_they_are_or_as_base64() -> None:
    row = {"name": "a", "datatype": "BYTES", "shape": [1]}
    _, values = answer(
        {"outputs": [{**row, "data": [b"\xff"]}, {**row, "data": ["/w=="], "parameters": {"content_type": "base64"}}]}
    )
    assert values == [[b"\xff"], [b"\xff"]]


@pytest.mark.parametrize(("value", "body"), [("text", b"text"), (b"\xff", b"\xff"), ({"a": 1}, b'{\n  "a": 1\n}')])
def test_any_other_answer_is_one_output_of_bytes(value: Any, body: bytes) -> None:
    head, values = answer(value)
    assert values == [[body]]
    assert (head["outputs"][0]["name"], head["outputs"][0]["shape"]) == ("output-0", [1])


@pytest.mark.parametrize(
    "output",
    [
        "a",
        {"name": "a", "datatype": "FP32", "shape": [1]},
        {"name": "a", "datatype": "FP32", "shape": [2], "data": [1]},
        {"name": "a", "datatype": "INT8", "shape": [1], "data": [300]},
        {"name": "a", "datatype": "FLOAT", "shape": [1], "data": [1]},
        {"name": "a", "datatype": "BYTES", "shape": [1], "data": ["?"], "parameters": {"content_type": "base64"}},
    ],
)
def test_an_output_that_is_no_tensor_is_the_handlers_mistake(output: Any) -> None:
    with pytest.raises(BadOutput, match="Open Inference Protocol"):
        answer({"outputs": [output]})
