"""BaseDeepSpeedHandler: base of the handlers that run a model with DeepSpeed."""

from __future__ import annotations

import os
from typing import Any

import torch

from torchd_workers.context import Context
from torchd_workers.handlers.base import BaseHandler


class BaseDeepSpeedHandler(BaseHandler):
    """Knows its device: the rank that the daemon gave the process. The subclass loads the model."""

    def initialize(self, ctx: Context) -> None:
        """Takes the device: the bare number of the GPU, as TorchServe has it; the CPU where there is none."""
        device: Any = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = device if torch.cuda.is_available() else torch.device("cpu")
