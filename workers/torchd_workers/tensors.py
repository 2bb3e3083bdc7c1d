"""Tensors between the daemon's bytes and the dictionaries that TorchServe's handlers know (envelope kservev2).

In: `{"id", "model_name", "inputs": [{"name", "shape", "datatype", "data": [...]}]}`, data flat; BYTES are base64 texts,
as TorchServe makes them. Out: the handler's answer of the same form with "outputs"; any other answer becomes one BYTES
tensor `output-0`.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from math import prod
from typing import Any

from torchd_protos.frames import Buffer
from torchd_protos.tensors import (
    BINARY_SIZE,
    TensorsInvalid,
    check_tensor,
    flat,
    pack,
    raw_of,
    raw_of_each,
    unpack,
    values_of,
)

PLAIN_OUTPUT = "output-0"


def request_of(body: Buffer) -> dict[str, Any]:
    """The request a handler sees; raises TensorsInvalid."""
    head, raw = unpack(body)
    inputs = head.get("inputs")
    for tensor, share in zip(inputs or [], raw_of_each(inputs, raw), strict=True):
        if share is None:
            continue
        parameters = tensor.pop("parameters")
        del parameters[BINARY_SIZE]
        if parameters:
            tensor["parameters"] = parameters
        values = values_of(tensor["datatype"], share)
        if tensor["datatype"] == "BYTES":
            values = [b64encode(value).decode() for value in values]
        tensor["data"] = values
    return head


def answer_of(value: Any, body: Buffer) -> bytes:
    """A handler's answer as packed tensors; `body` is what would be sent of `value`. Raises TensorsInvalid."""
    answer = _answer(value)
    if answer is None:
        output = {"name": PLAIN_OUTPUT, "datatype": "BYTES", "shape": [1]}
        raw = raw_of("BYTES", [bytes(body)])
        return pack({"outputs": [{**output, "parameters": {BINARY_SIZE: len(raw)}}]}, [raw])
    packed = [_packed(tensor) for tensor in answer["outputs"]]
    return pack({**answer, "outputs": [tensor for tensor, _ in packed]}, [raw for _, raw in packed])


def _answer(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str | bytes | bytearray):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    found = isinstance(value, dict) and isinstance(value.get("outputs"), list)
    return value if found else None


def _packed(tensor: Any) -> tuple[dict[str, Any], bytes]:
    if isinstance(tensor, dict) and "shape" in tensor and not isinstance(tensor["shape"], list):
        tensor = {**tensor, "shape": list(tensor["shape"])}  # torch.Size, a tuple
    check_tensor(tensor)
    name, datatype = tensor["name"], tensor["datatype"]
    if "data" not in tensor:
        raise TensorsInvalid(f"tensor {name!r} has no data")
    values = flat(tensor["data"])
    parameters = dict(tensor.get("parameters") or {})
    count = prod(tensor["shape"])
    if len(values) != count:
        raise TensorsInvalid(f"tensor {name!r} has {len(values)} elements; its shape {tensor['shape']} has {count}")
    if datatype == "BYTES" and parameters.get("content_type") == "base64":
        values = [b64decode(value, validate=True) for value in values]
    try:
        raw = raw_of(datatype, values)
    except TensorsInvalid as error:
        raise TensorsInvalid(f"tensor {name!r}: {error}") from error
    described = {key: tensor[key] for key in ("name", "datatype", "shape")}
    return {**described, "parameters": {**parameters, BINARY_SIZE: len(raw)}}, raw
