"""The envelope `kservev2`: the Open Inference Protocol's inputs and outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from torchd_workers.failures import PredictionException
from torchd_workers.handlers.envelopes.base import BaseEnvelope, alone, body_of, field_of, then

_DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}


class KServev2Envelope(BaseEnvelope):
    """The handler gets a request's inputs as its batch, and gives one output for each. (TorchServe reads the first
    request only.)
    """

    def handle(self, data: Any, context: Any) -> Any:
        """Answers one batch. Requests of one input share a call; those of more have one each, lest outputs mix."""
        if not data:
            return self._handle_fn(data, context)
        bodies = [body_of(row) for row in data]
        inputs = [[_read(tensor) for tensor in field_of(body, "inputs")] for body in bodies]
        ids = [_id(body) or context.get_request_id(row) for row, body in enumerate(bodies)]

        def responses(by_request: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
            return [_response(identity, context, outputs) for identity, outputs in zip(ids, by_request, strict=True)]

        if all(len(tensors) == 1 for tensors in inputs):
            outputs = self._outputs([tensors[0] for tensors in inputs], context)
            return then(outputs, lambda found: responses([[output] for output in found]))
        if len(data) == 1:
            return then(self._outputs(inputs[0], context), lambda found: responses([found]))
        return responses([self._outputs(tensors, alone(context, row)) for row, tensors in enumerate(inputs)])

    def _outputs(self, inputs: list[dict[str, Any]], context: Any) -> Any:
        names = [tensor["name"] for tensor in inputs]
        context.input_names = names  # TorchServe's place for them, where handlers look
        return then(self._handle_fn(inputs, context), lambda values: _outputs_of(names, values))


def _outputs_of(names: list[str], values: Any) -> list[dict[str, Any]]:
    if not isinstance(values, list) or len(values) > len(names):
        said = len(values) if isinstance(values, list) else f"a {type(values).__name__}"
        raise ValueError(f"the handler returned {said} for the inputs {', '.join(names)}; one output for each")
    return [_output(name, value) for name, value in zip(names, values, strict=False)]


def _read(tensor: Any) -> dict[str, Any]:
    """An input with its data in its shape; of BYTES, one element alone is itself."""
    try:
        data = tensor["data"]
        if tensor["datatype"] == "BYTES":
            data = data[0] if len(data) == 1 else data
        else:
            data = np.array(data).reshape(tuple(tensor["shape"])).tolist()
        return {**tensor, "name": str(tensor["name"]), "data": data}
    except (KeyError, TypeError, ValueError) as error:
        said = f"lacks {error}" if isinstance(error, KeyError) else f"does not fit together: {error}"
        raise PredictionException(f"an input of the request {said}", 400) from error


def _id(body: dict[str, Any]) -> str:
    found = body.get("id")
    return found if isinstance(found, str) and found.strip() else ""


def _response(identity: str, context: Any, outputs: list[dict[str, Any]]) -> dict[str, Any]:
    model = (context.manifest or {}).get("model", {})
    return {
        "id": identity,
        "model_name": model.get("modelName"),
        "model_version": model.get("modelVersion"),
        "outputs": outputs,
    }


def _output(name: str, value: Any) -> dict[str, Any]:
    array = np.array(value).flatten()
    datatype = _DATATYPES.get(str(array.dtype), "BYTES")
    return {"name": name, "datatype": datatype, "data": array.tolist(), "shape": list(array.shape)}
