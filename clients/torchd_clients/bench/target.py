"""What is asked, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Protocol = Literal["grpc", "rest"]


@dataclass(frozen=True, slots=True)
class Input:
    """The body of one request. `name` is its key in a gRPC request's input."""

    body: bytes
    content_type: str = "application/octet-stream"
    name: str = "body"


@dataclass(frozen=True, slots=True)
class Target:
    """A model behind one address, `HOST:PORT`. The inputs are asked in turn, from the first again after the last."""

    protocol: Protocol
    address: str
    model: str
    inputs: tuple[Input, ...]
    version: str = ""
    token: str = ""
    # REST: what is asked for instead of /predictions/{model}[/{version}].
    path: str = ""
    # A good answer contains this.
    expect: bytes = b""
