"""How a target's requests go over the wire."""

from __future__ import annotations

import pytest

from torchd_clients.bench.target import Input, Target
from torchd_clients.bench.wire import address, fields, requests
from torchd_protos.inference_pb2 import PredictionsRequest


def test_a_rest_request_names_model_version_type_and_token() -> None:
    target = Target("rest", "h:1", "a b/c", (Input(b"{}", "application/json"),), version="2", token="t")
    assert requests(target) == (
        b"POST /predictions/a%20b%2Fc/2 HTTP/1.1\r\nHost: h:1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\nAuthorization: Bearer t\r\n\r\n{}",
    )


def test_a_rest_request_may_go_to_another_path() -> None:
    (request,) = requests(Target("rest", "h:1", "m", (Input(b"x"),), path="/v2/models/m/infer"))
    assert request.startswith(b"POST /v2/models/m/infer HTTP/1.1\r\n")
    assert b"Authorization" not in request


def test_a_grpc_message_is_the_request_behind_its_prefix() -> None:
    target = Target("grpc", "h:1", "m", (Input(b"one"), Input(b"two", name="data")), version="2", token="t")
    first, second = requests(target)
    assert first[:5] == b"\0" + (len(first) - 5).to_bytes(4, "big")
    assert PredictionsRequest.FromString(first[5:]) == PredictionsRequest(
        model_name="m", model_version="2", input={"body": b"one"}
    )
    assert PredictionsRequest.FromString(second[5:]).input == {"data": b"two"}
    assert dict(fields(target))[b"authorization"] == b"Bearer t"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("h:80", ("h", 80)), ("http://h:80/", ("h", 80)), ("[::1]:80", ("::1", 80)), ("http://[::1]:80", ("::1", 80))],
)
def test_addresses_are_read_as_people_write_them(text: str, wanted: tuple[str, int]) -> None:
    assert address(text) == wanted


@pytest.mark.parametrize("text", ["", "h", "h:", ":80", "h:http"])
def test_what_is_no_address_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="no address of a server"):
        address(text)
