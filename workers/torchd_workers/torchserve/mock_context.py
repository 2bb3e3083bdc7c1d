"""MockContext: a context for unit tests of handlers."""

from __future__ import annotations

import os
import uuid
from typing import Any

from torchd_workers.context import Context
from torchd_workers.torchserve.metric import MetricsStore
from torchd_workers.torchserve.util import get_yaml_config


class MockContext(Context):
    """The context of a model in a folder, as if one request were there. `metrics` is a MetricsStore to look into."""

    def __init__(
        self,
        model_pt_file: str | None = "model.pt",
        model_dir: str = "ts/torch_handler/unit_tests/models/tmp",
        model_file: str | None = "model.py",
        gpu_id: str | None = "0",
        model_name: str = "mnist",
        model_yaml_config_file: str | None = None,
    ) -> None:
        import torch  # only tests of models make one

        files = {"serializedFile": model_pt_file, "modelFile": model_file}
        config = get_yaml_config(os.path.join(model_dir, model_yaml_config_file)) if model_yaml_config_file else {}
        super().__init__(
            model_name,
            model_dir,
            {"model": {name: file for name, file in files.items() if file}},
            1,
            int(gpu_id) if gpu_id and torch.cuda.is_available() else None,
            model_yaml_config=config,
        )
        self.explain = False
        store: Any = MetricsStore(str(uuid.uuid4()), model_name)
        self.metrics = store

    def get_request_header(self, idx: int, key: str) -> Any:
        """TorchServe's mock: True for a later request of the batch once `explain` is set, else False."""
        return bool(idx and key and self.explain)
