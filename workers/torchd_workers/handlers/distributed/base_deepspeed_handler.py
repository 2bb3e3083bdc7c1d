"""BaseDeepSpeedHandler: base of the handlers that run a model with DeepSpeed."""

from __future__ import annotations

import os
from typing import Any

from torchd_workers.context import Context
from torchd_workers.handlers.base import BaseHandler
from torchd_workers.handlers.optional_libraries import library


class BaseDeepSpeedHandler(BaseHandler):
    """Knows its device: the rank that torchrun gave the process. The subclass loads the model."""

    def initialize(self, ctx: Context) -> None:
        """Takes the device."""
        library("deepspeed", type(self).__name__, "deepspeed")
        device: Any = int(os.environ.get("LOCAL_RANK", "0"))  # TorchServe's handlers take the bare number
        self.device = device
