"""BasePippyHandler: base of the handlers that split a model with PiPPy."""

from __future__ import annotations

import os
from typing import Any

import torch

from torchd_workers.context import Context
from torchd_workers.handlers.base import BaseHandler
from torchd_workers.handlers.distributed.pt_pippy import initialize_rpc_workers
from torchd_workers.handlers.optional_libraries import library


class BasePippyHandler(BaseHandler):
    """Knows its rank and device and joins the group of processes. The subclass loads the model."""

    def initialize(self, ctx: Context) -> None:
        """Joins the group."""
        library("pippy", type(self).__name__, "torchpippy")
        self.local_rank = int(os.environ["LOCAL_RANK"])
        self.world_size = int(os.environ["WORLD_SIZE"])
        device: Any = self.local_rank % torch.cuda.device_count()
        self.device = device
        initialize_rpc_workers(self.local_rank, self.world_size, ctx)
