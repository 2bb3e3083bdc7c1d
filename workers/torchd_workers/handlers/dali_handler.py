"""DALIHandler: images through an NVIDIA DALI pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from torchd_workers.context import Context
from torchd_workers.handlers.dali import get_dali_pipeline
from torchd_workers.handlers.optional_libraries import library
from torchd_workers.handlers.rows import payload_of
from torchd_workers.handlers.vision_handler import VisionHandler


class DALIHandler(VisionHandler):
    """Base of the handlers whose preprocessing is a DALI pipeline."""

    def __init__(self) -> None:
        super().__init__()
        self.pipeline: Any = None

    def initialize(self, context: Context) -> None:
        """Loads the model and the pipeline."""
        library("nvidia.dali", type(self).__name__, "nvidia-dali-cuda120")
        super().initialize(context)
        self.pipeline = get_dali_pipeline(context)

    def preprocess(self, data: Any) -> Any:
        """The batch as the pipeline makes it."""
        files = [payload_of(row) for row in data]
        encoded = [
            np.frombuffer(file, dtype=np.uint8) if isinstance(file, bytes | bytearray) else file for file in files
        ]
        (images, *_) = self.pipeline.run(source=encoded)
        return torch.stack([torch.tensor(images.at(index)) for index in range(len(encoded))]).to(self.device)
