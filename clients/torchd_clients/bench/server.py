"""The server that is measured: where it is asked, described and watched. Any with TorchServe's API will do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import quote

from torchd_clients.bench.figures import Reading, read
from torchd_clients.bench.target import Protocol
from torchd_clients.bench.wire import address as host_and_port

_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Server:
    """Addresses as HOST:PORT; empty where it is not known. `pid` 0: its processes are not ours to see."""

    grpc_inference: str
    inference: str
    management: str = ""
    metrics: str = ""
    pid: int = 0
    inference_token: str = ""
    management_token: str = ""

    def address(self, protocol: Protocol) -> str:
        """Where models are asked over that protocol."""
        return self.grpc_inference if protocol == "grpc" else self.inference

    def describe(self, model: str, version: str = "") -> Mapping[str, Any]:
        """What DescribeModel says of it; empty where it cannot be asked."""
        path = "/models/" + "/".join(quote(part, safe="") for part in (model, version) if part)
        answer = self._get(self.management, path)
        try:
            described = json.loads(answer)[0] if answer else {}
        except (ValueError, LookupError):
            return {}
        return described if isinstance(described, dict) else {}

    def metrics_of(self, model: str, version: str = "") -> Reading:
        """What its metrics page says of the model now; empty where there is none."""
        return read(self._get(self.metrics, "/metrics"), model, version)

    def _get(self, address: str, path: str) -> str:
        if not address:
            return ""
        host, port = host_and_port(address)
        headers = {"Authorization": f"Bearer {self.management_token}"} if self.management_token else {}
        connection = HTTPConnection(host, port, timeout=_PATIENCE)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        except (OSError, HTTPException):
            return ""
        finally:
            connection.close()
        return text if answer.status == 200 else ""
