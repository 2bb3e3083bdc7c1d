"""TRTLLMHandler: the name that archives of TorchServe's give. It says what it needs until the model is asked for."""

from __future__ import annotations

from typing import Any

from torchd_workers.context import Context
from torchd_workers.handlers.base import BaseHandler
from torchd_workers.handlers.optional_libraries import library


class TRTLLMHandler(BaseHandler):
    """Refuses to load, in one sentence."""

    def initialize(self, context: Context) -> None:
        """Says what is missing."""
        library("tensorrt_llm", "TRTLLMHandler", "tensorrt_llm")
        raise NotImplementedError("torchd runs no models with tensorrt_llm yet; a handler of your own can")

    def handle(self, data: Any, context: Context) -> Any:
        """Never called: the model does not load."""
        raise NotImplementedError("torchd runs no models with tensorrt_llm yet; a handler of your own can")
