"""What is read and written by hand is what the generated classes read and write."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from torchd_protos.inference_pb2 import PredictionResponse, PredictionsRequest
from torchd_server.surfaces.prediction_wire import COPIED_BYTES, Asked, answer, asked_in, asked_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
REQUESTS = st.builds(
    PredictionsRequest,
    model_name=TEXT,
    model_version=TEXT,
    input=st.dictionaries(TEXT, st.binary(max_size=300), max_size=4),
    sequence_id=st.none() | TEXT,
)


@given(REQUESTS)
def test_a_request_says_the_same_either_way(request: PredictionsRequest) -> None:
    assert asked_of(request.SerializeToString()) == asked_in(request)


@given(st.binary(max_size=60) | st.tuples(REQUESTS, st.data()).map(lambda pair: _broken(*pair)))
def test_any_bytes_are_read_or_refused_as_the_generated_class_does(message: bytes) -> None:
    try:
        expected: Asked | None = asked_in(PredictionsRequest.FromString(message))
    except DecodeError:
        expected = None
    if expected is None:
        with pytest.raises(DecodeError):
            asked_of(message)
    else:
        assert asked_of(message) == expected


def _broken(request: PredictionsRequest, data: st.DataObject) -> bytes:
    """The message with some of its bytes changed or cut off."""
    message = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(0, 3)) if message else 0):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    return bytes(message[: data.draw(st.integers(0, len(message)))])


@pytest.mark.parametrize("size", [0, 1, 127, 128, COPIED_BYTES, COPIED_BYTES + 1, 3_000_000])
def test_bodies_of_any_size_are_whole_and_large_ones_are_not_copied(size: int) -> None:
    message = PredictionsRequest(model_name="m", input={"data": b"x" * size}).SerializeToString()
    asked = asked_of(message)
    assert asked.input == {"data": b"x" * size}
    assert isinstance(asked.input["data"], memoryview) == (size > COPIED_BYTES)


def test_a_size_without_end_costs_no_time() -> None:
    with pytest.raises(DecodeError):
        asked_of(b"\x0a" + b"\xff" * 2**20)


@given(st.binary(max_size=40_000), st.none() | TEXT)
def test_an_answer_is_read_as_it_was_meant(prediction: bytes, sequence: str | None) -> None:
    expected = PredictionResponse(prediction=prediction, sequence_id=sequence)
    assert PredictionResponse.FromString(answer(memoryview(prediction), sequence)) == expected
