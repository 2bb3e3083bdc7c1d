"""Says what it was given: every row with types, every header, the model's configuration. Answers JSON."""

from __future__ import annotations

from typing import Any

# Each client library adds its own; what the steps send on purpose is left.
_OF_THE_CLIENT = {"host", "user-agent", "content-length", "accept-encoding"}


def handle(data: Any, context: Any) -> Any:
    """One document for each request of the batch."""
    if data is None:  # TorchServe calls a function once when it loads the model
        return None
    return [_seen(index, row, context) for index, row in enumerate(data)]


def _seen(index: int, row: Any, context: Any) -> dict[str, Any]:
    headers = context.get_all_request_header(index)
    return {
        "row": {name: _value(value) for name, value in row.items()},
        "headers": {name: headers[name] for name in sorted(headers) if name.lower() not in _OF_THE_CLIENT},
        "request_id": context.get_request_id(index),
        "batch": len(context.request_ids),
        "gpu_id": context.system_properties.get("gpu_id"),
        "batch_size": context.system_properties.get("batch_size"),
        "server_name": context.system_properties.get("server_name"),
        "server_version": context.system_properties.get("server_version"),
        "limit_max_image_pixels": context.system_properties.get("limit_max_image_pixels"),
        "model_name": context.model_name,
        "model_yaml_config": context.model_yaml_config,
    }


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, (bytes, bytearray)):
        return {"type": type(value).__name__, "text": bytes(value).decode("latin-1")}
    return {"type": type(value).__name__, "value": value}
