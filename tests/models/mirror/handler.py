"""A function handler that answers what it saw: its parts, and the headers TorchServe adds for handlers."""


def handle(data, context):
    """One JSON object per request."""
    if data is None:
        return None
    return [_seen(index, row, context) for index, row in enumerate(data)]


def _seen(index, row, context):
    if context.get_request_header(index, "describe") == "True":
        return {"parts": len(row), "kind": "mirror"} if context.model_yaml_config.get("describes", True) else "plain"
    return {
        "parts": {
            name: value if isinstance(value, (str, dict, list)) else value.decode() for name, value in row.items()
        },
        "url_path": context.get_request_header(index, "url_path"),
        "explain": context.get_request_header(index, "explain"),
        "batch_size": len(context.running),
    }
