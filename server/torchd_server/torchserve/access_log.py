"""TorchServe's access log: who asked for what, how it ended, how many milliseconds it took."""

from __future__ import annotations

from torchd_server.torchserve.log_files import ACCESS_STREAM
from torchd_server.torchserve.metrics_log import Write

THREAD = "torchd"


class AccessLog:
    """Writes one line for each answer."""

    def __init__(self, write: Write) -> None:
        self._write = write

    def http(self, peer: str, method: str, target: str, version: str, status: int, seconds: float) -> None:
        """`/127.0.0.1:53514 "POST /models HTTP/1.1" 405 0`."""
        text = f'/{peer} "{method} {target} HTTP/{version}" {status} {int(seconds * 1000)}'
        self._write(ACCESS_STREAM, THREAD, lambda: text)

    def grpc(self, peer: str, method: str, code: int, seconds: float) -> None:
        """`/127.0.0.1:45178 "gRPC org.pytorch.serve.grpc.inference.InferenceAPIsService/Ping HTTP/2.0" 0 34`."""
        address = peer.partition(":")[2] if peer.startswith(("ipv4:", "ipv6:")) else peer
        text = f'/{address} "gRPC {method.removeprefix("/")} HTTP/2.0" {code} {int(seconds * 1000)}'
        self._write(ACCESS_STREAM, THREAD, lambda: text)
