"""Sends two pieces before the last one; {"fail": true} breaks off after the first."""

from __future__ import annotations

import json
from typing import Any

from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data: Any, context: Any) -> Any:
    """Three pieces for each request."""
    if data is None:
        return None
    body = data[0].get("body") or data[0].get("data") or b"{}"
    wish = body if isinstance(body, dict) else json.loads(bytes(body))
    send_intermediate_predict_response(["one "], context.request_ids, "Intermediate Prediction success", 200, context)
    if wish.get("fail"):
        raise ValueError("it breaks off")
    send_intermediate_predict_response(["two "], context.request_ids, "Intermediate Prediction success", 200, context)
    return ["three"]
