"""A target's requests as they go over the wire: encoded once, before the first is asked."""

from __future__ import annotations

from urllib.parse import quote

from torchd_clients.bench.target import Input, Target

_METHOD = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"


def address(text: str) -> tuple[str, int]:
    """HOST and PORT of HOST:PORT, [HOST]:PORT or http://HOST:PORT. Raises ValueError."""
    bare = text.removeprefix("http://").rstrip("/")
    host, colon, port = bare.rpartition(":")
    if not (colon and host and port.isdigit()):
        raise ValueError(f"{text!r} is no address of a server; write it as in 127.0.0.1:7070")
    return host.removeprefix("[").removesuffix("]"), int(port)


def requests(target: Target) -> tuple[bytes, ...]:
    """One for each input: whole HTTP/1.1 requests, or gRPC messages with their prefix."""
    encode = _rest_request if target.protocol == "rest" else _grpc_message
    return tuple(encode(target, one) for one in target.inputs)


def fields(target: Target) -> tuple[tuple[bytes, bytes], ...]:
    """The header fields of each gRPC call."""
    token = [(b"authorization", f"Bearer {target.token}".encode())] if target.token else []
    return (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", (target.path or _METHOD).encode()),
        (b":authority", target.address.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"torchd-bench"),
        *token,
    )


def _rest_request(target: Target, one: Input) -> bytes:
    path = target.path or "/predictions/" + "/".join(
        quote(part, safe="") for part in (target.model, target.version) if part
    )
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {target.address}",
        f"Content-Type: {one.content_type}",
        f"Content-Length: {len(one.body)}",
    ]
    if target.token:
        lines.append(f"Authorization: Bearer {target.token}")
    return "\r\n".join([*lines, "", ""]).encode() + one.body


def _grpc_message(target: Target, one: Input) -> bytes:
    from torchd_protos.inference_pb2 import PredictionsRequest

    request = PredictionsRequest(
        model_name=target.model, model_version=target.version, input={one.name: one.body}
    ).SerializeToString()
    return bytes([0]) + len(request).to_bytes(4, "big") + request
