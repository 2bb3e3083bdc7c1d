"""The bytes of TorchServe's protocol between its two processes, which torchd does not speak."""

from __future__ import annotations

from typing import Any, NoReturn


def create_predict_response(
    ret: Any, req_id_map: Any, message: str, code: int, context: Any = None, ts_stream_next: bool = False
) -> NoReturn:
    """Refuses: nothing here reads such bytes."""
    raise NotImplementedError(
        "torchd's workers do not speak TorchServe's protocol; send chunks with "
        "ts.handler_utils.utils.send_intermediate_predict_response"
    )
