"""BasePippyHandler: base of the handlers written for PiPPy, whose model runs as a pipeline over the worker's ranks."""

from __future__ import annotations

import os
from typing import Any

import torch

from torchd_workers.context import Context
from torchd_workers.handlers.base import BaseHandler
from torchd_workers.handlers.distributed.pt_pippy import initialize_rpc_workers


class BasePippyHandler(BaseHandler):
    """Knows its rank and device and joins the group of processes. The subclass loads the model."""

    def initialize(self, ctx: Context) -> None:
        """Joins the group."""
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        # TorchServe's handlers take the bare number of the GPU; without one there is nothing to count.
        gpus = torch.cuda.device_count()
        device: Any = self.local_rank % gpus if gpus else torch.device("cpu")
        self.device = device
        initialize_rpc_workers(self.local_rank, self.world_size, ctx)
