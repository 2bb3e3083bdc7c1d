"""Answers in the way that the request's JSON body asks for: {"do": "..."}; one method for each way."""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any

from ts.service import PredictionException

logger = logging.getLogger(__name__)


class Answers:
    """A class handler without torch."""

    def initialize(self, context: Any) -> None:
        """Nothing to load."""
        self.context = context

    def handle(self, data: list[Any], context: Any) -> Any:
        """What the first request of the batch asks for."""
        body = data[0].get("body")
        wish = body if isinstance(body, dict) else json.loads(body or b"{}")
        return getattr(self, f"do_{wish.get('do', 'text')}")(wish, context, len(data))

    def do_text(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """A str."""
        return [f"text of {wish.get('name', 'nobody')}"] * size

    def do_unicode(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """A str beyond ASCII."""
        return ["gr\u00fc\u00df \u4f60\u597d"] * size

    def do_bytes(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """Bytes that are no text."""
        return [b"\x00\xff\x01"] * size

    def do_bytearray(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """A bytearray."""
        return [bytearray(b"array")] * size

    def do_dict(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """A dict, nested."""
        return [{"b": [1, 2.5, None, True], "a": {"x": "\u00fc"}, "empty": {}}] * size

    def do_list(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """A list."""
        return [[1, [2, 3], "x"]] * size

    def do_number(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """An int."""
        return [7] * size

    def do_null(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """None."""
        return [None] * size

    def do_empty(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """Nothing, as text."""
        return [""] * size

    def do_large(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """So many letters."""
        return ["x" * int(wish["bytes"])] * size

    def do_content_type(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """A content type of its own."""
        context.set_response_content_type(0, wish["type"])
        return ["<b>typed</b>"]

    def do_header(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """Headers of its own."""
        for name, value in wish["headers"].items():
            context.set_response_header(0, name, value)
        return ["with headers"]

    def do_status(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """A status and a phrase of its own."""
        context.set_response_status(code=wish["code"], phrase=wish.get("phrase", ""), idx=0)
        return [{"chosen": wish["code"]}]

    def do_all_status(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """The same for the whole batch."""
        context.set_all_response_status(wish["code"], wish.get("phrase", ""))
        return [{"chosen": wish["code"]}] * size

    def do_processor_status(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """The older way: RequestProcessor.report_status."""
        context.request_processor[0].report_status(wish["code"], wish.get("phrase"))
        return ["reported"]

    def do_prediction_exception(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """PredictionException with a code."""
        if "code" in wish:
            raise PredictionException(wish["message"], wish["code"])
        raise PredictionException(wish["message"])

    def do_raise(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """Any exception."""
        raise ValueError(wish.get("message", "it does not work"))

    def do_memory(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """Out of memory, by type."""
        raise MemoryError

    def do_cuda(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """Out of memory, by TorchServe's test of the text."""
        raise RuntimeError("CUDA out of memory")

    def do_not_a_list(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """No list."""
        return {"not": "a list"}

    def do_none_at_all(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """Nothing."""
        return None

    def do_wrong_count(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """One too many."""
        return ["x"] * (size + 1)

    def do_unserialisable(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """What JSON cannot say."""
        return [{1, 2}] * size

    def do_exit(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """The process leaves in the middle of a request."""
        os._exit(int(wish.get("code", 1)))

    def do_sleep(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """Takes its time."""
        time.sleep(float(wish["seconds"]))
        return ["slept"] * size

    def do_environment(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """Variables of the worker's environment."""
        return [{name: os.environ.get(name) for name in wish["names"]}] * size

    def do_log(self, wish: dict[str, Any], context: Any, size: int) -> Any:
        """Speaks in the log."""
        print("printed by the handler")
        logger.info("told by the handler")
        logger.warning("warned by the handler")
        return ["logged"] * size
