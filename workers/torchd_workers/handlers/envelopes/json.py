"""The envelope `json`: TensorFlow Serving's {"instances": [...]} and {"predictions": [...]}."""

from __future__ import annotations

import binascii
from base64 import b64decode
from json import dumps
from typing import Any

from torchd_workers.failures import PredictionException
from torchd_workers.handlers.envelopes.base import BaseEnvelope, field_of, parsed, split


class JSONEnvelope(BaseEnvelope):
    """The handler gets the instances of all requests as one batch; {"b64": text} becomes bytes."""

    def __init__(self, handle_fn: Any) -> None:
        super().__init__(handle_fn)
        self._sizes: list[int] = []

    def parse_input(self, data: Any) -> list[Any]:
        """The instances of all requests."""
        by_request = [_instances(row) for row in data]
        self._sizes = [len(instances) for instances in by_request]
        return [instance for instances in by_request for instance in instances]

    def format_output(self, data: Any) -> list[str]:
        """One JSON text per request."""
        return [dumps({"predictions": part}) for part in split(data, self._sizes)]


def _instances(row: Any) -> list[Any]:
    body = row.get("data") or row.get("body") or row
    body = parsed(body) if isinstance(body, bytes | bytearray | str) else body
    return [_instance(instance) for instance in field_of(body, "instances")]


def _instance(instance: Any) -> Any:
    if not isinstance(instance, dict):
        return instance
    if list(instance) == ["b64"]:
        return _bytes(instance)
    return {name: _bytes(value) if _is_b64(value) else value for name, value in instance.items()}


def _is_b64(value: Any) -> bool:
    return isinstance(value, dict) and list(value) == ["b64"]


def _bytes(value: dict[str, Any]) -> bytes:
    try:
        return b64decode(value["b64"])
    except (binascii.Error, TypeError, ValueError) as error:
        raise PredictionException(f"an instance has the field 'b64' and no base64 in it: {error}", 400) from error
